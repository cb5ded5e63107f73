import os

__version__ = "0.1.0"

# OpenMP's threads spin while they wait, which on a busy machine takes the cores from those that
# work. Here they wait asleep; libgomp's first spin a moment, which costs a quiet machine nothing.
# It counts when gptlab is imported before torch. A policy set by the user stays.
if 'OMP_WAIT_POLICY' not in os.environ:
    os.environ['OMP_WAIT_POLICY'] = 'passive'
    os.environ.setdefault('GOMP_SPINCOUNT', '1000')
