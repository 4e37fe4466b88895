"""Carehook mistreated, as processes on real stores, with load all the while; and the books of it afterwards.

The law that every run is held to:
- Nothing accepted is lost. What a caller was told is stored, once, and arrives at every endpoint as it was accepted.
- Nothing else is sent: no half event, none that nobody published, none altered or with a signature that does not hold.
- What arrives twice is explained. Every request is an attempt that is recorded, and only an attempt whose answer did
  not come to be known, because it was interrupted or its connection broke, is followed by another after it was taken.
- A result counts under its lease alone. Attempts are numbered without gaps, and the one that succeeded is the last.

Chance decides where a fault meets the service, so each run prints its seed. Waiting has an end only so that a run that
is stuck fails; nothing is asserted of how long anything takes.
"""
