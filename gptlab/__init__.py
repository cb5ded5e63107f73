import os

__version__ = "0.1.0"

# Threads that wait for work sleep instead of spinning: on a busy machine a step is several times
# as fast. It counts when gptlab is imported before torch; a value set by the user stays.
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
