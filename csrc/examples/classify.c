/* Prints the top classes that a saved network gives an image.
 *
 *     cc classify.c -I <folder of pyquant.h> -L <folder of libpyquant.so> -lpyquant -o classify
 *     ./classify model.pq image.f32 5
 *
 * The image is the network's input as raw float32, [C][H][W]: in Python, image.numpy().tofile("image.f32"). */
#include <pyquant.h>
#include <stdio.h>
#include <stdlib.h>

static int refuse(const char *what) {
  fprintf(stderr, "classify: %s\n", what);
  return 1;
}

int main(int argc, char **argv) {
  pq_program *program;
  pq_tensor in, out;
  if (argc != 4) return refuse("give a saved network, an image of raw float32, and how many classes to print");
  if (pq_load(argv[1], NULL, &program) != PQ_OK) return refuse(pq_last_error());
  if (pq_input_count(program) != 1 || pq_output_count(program) != 1) return refuse("the network is no classifier");
  pq_input(program, 0, &in);
  pq_output(program, 0, &out);
  if (in.dtype != PQ_FLOAT32 || out.dtype != PQ_FLOAT32) return refuse("the network takes or gives no floats");

  float *image = malloc((size_t)in.elements * sizeof *image);
  float *scores = malloc((size_t)out.elements * sizeof *scores);
  FILE *file = fopen(argv[2], "rb");
  if (image == NULL || scores == NULL) return refuse("there is not enough memory");
  if (file == NULL) return refuse("the image cannot be read");
  const size_t got = fread(image, sizeof *image, (size_t)in.elements, file);
  if (got != (size_t)in.elements || fgetc(file) != EOF) return refuse("the image has another size than the network's input");
  fclose(file);

  const void *inputs[] = {image};
  void *outputs[] = {scores};
  if (pq_run(program, 1, inputs, outputs, 1) != PQ_OK) return refuse(pq_last_error());

  char *printed = calloc((size_t)out.elements, 1);
  if (printed == NULL) return refuse("there is not enough memory");
  for (long n = atol(argv[3]) < out.elements ? atol(argv[3]) : (long)out.elements; n > 0; --n) {
    int64_t best = -1;
    for (int64_t i = 0; i < out.elements; ++i) {
      if (!printed[i] && (best < 0 || scores[i] > scores[best])) best = i;
    }
    printed[best] = 1;
    /* Nine digits tell every float32 from every other. */
    printf("%ld %.9g\n", (long)best, (double)scores[best]);
  }
  free(image), free(scores), free(printed);
  pq_free(program);
  return 0;
}
