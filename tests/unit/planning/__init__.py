"""Tests of longvita.planning."""
