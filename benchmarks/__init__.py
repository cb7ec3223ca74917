"""Measured from a clone: speed (`python -m benchmarks`), the labeler (`.labeler`), odd DICOM films (`.dicom_cases`)."""
