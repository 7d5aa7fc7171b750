"""Measurements that take minutes to hours and need a corpus. None of them is a test."""
