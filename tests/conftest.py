"""Runs before jax is imported: eight host devices, and threads enough that they cannot deadlock."""

import os

# XLA's CPU client sizes its thread pool by NPROC; with fewer threads than fake devices a collective
# can wait for a participant that has no thread to run on.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
