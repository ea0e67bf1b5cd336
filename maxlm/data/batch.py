"""Kept while the loader moves to `maxlm.batch`."""

from maxlm.batch import Batch as Batch
