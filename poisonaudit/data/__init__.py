"""Data sets by name: bundled, npz and csv, with their split, scaling, box and provenance."""

from poisonaudit.data.dataset import DataSet, Source
from poisonaudit.data.export import npz_bytes
from poisonaudit.data.export_folder import FolderExport, eight_bits, refuse_folder_export, write_folder
from poisonaudit.data.load import DATA, Loader, load_data

__all__ = [
    "DATA",
    "DataSet",
    "FolderExport",
    "Loader",
    "Source",
    "eight_bits",
    "load_data",
    "npz_bytes",
    "refuse_folder_export",
    "write_folder",
]
