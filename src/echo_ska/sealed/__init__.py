"""Files that are whole or refused: written beside, flushed, renamed; sealed by checksums; nothing is pickled."""

from echo_ska.sealed.disk import PARTIAL, digest, flush, storable, whole_file
from echo_ska.sealed.file import read_sealed_file, write_sealed_file
from echo_ska.sealed.folder import (
    SUMS,
    broken_sum,
    read_description,
    read_sealed_folder,
    write_description,
    write_sealed_folder,
    write_sums,
)
from echo_ska.sealed.lock import locked_folder, sole_folder

__all__ = [
    "PARTIAL",
    "SUMS",
    "broken_sum",
    "digest",
    "flush",
    "locked_folder",
    "read_description",
    "read_sealed_file",
    "read_sealed_folder",
    "sole_folder",
    "storable",
    "whole_file",
    "write_description",
    "write_sealed_file",
    "write_sealed_folder",
    "write_sums",
]
