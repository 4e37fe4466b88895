"""Carehook mistreated, as processes on real stores, with load all the while; and the books of it afterwards.

The law that every run is held to:
- Nothing accepted is lost. What a caller was told is stored, once, and arrives as it was accepted at every endpoint
  that was there. Apart is only what somebody cancelled, what was refused until the schedule ended, and what an endpoint
  that was deleted or stays paused did not take. Nothing else is left undone.
- Nothing else is sent: no half event, none that nobody published, none altered or with a signature that does not hold.
- What arrives twice is explained. Every request is an attempt that is recorded, and only an attempt whose answer did
  not come to be known, because it was interrupted or its connection broke, is followed by another after it was taken,
  or one that somebody asked for.
- A result counts under its lease alone. Attempts are numbered without gaps, and the one that succeeded is the last.
- An order is kept. Where an endpoint asks for it, no request of a patient's event begins before each event of that
  patient that was accepted earlier was taken or given up.
- Limits are kept, over all workers: requests in flight and requests a second.
- What people were told holds. Once it was answered that an endpoint was paused, deleted or given another URL, or that a
  delivery was cancelled, nothing begins there any more but what was in flight by then, and that once.

What nobody but the receiver knows the end of, because its attempt was cut off, proves nothing of order, limits and
silence. Everything is compared by what happened before what, and nothing by how long it took.

Chance decides where a fault meets the service, so each run prints its seed. Waiting has an end only so that a run that
is stuck fails; nothing is asserted of how long anything takes.
"""
