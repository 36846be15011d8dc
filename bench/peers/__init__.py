"""Other engines on the same work, one file each; every function builds one case and returns the call to time.

An engine runs in a process of its own (``worker.py``), which ``crew.py`` starts, asks and stops. None of them is a dependency.
"""
