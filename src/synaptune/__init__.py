"""Synaptune: which biological constants of a synaptic transformer matter, and what they are worth."""

import os

# Read by OpenMP when torch loads it. Threads that spin between parallel regions take the cores from every other process: on a machine that
# runs two trainings at once a step is several times slower with the default.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
