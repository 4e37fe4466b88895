"""The HTTP API, version 1: what the platform's backend and the support team call.

`build_api` gives the whole of it as one ASGI application, `build_probes` what a worker alone answers. One module a
resource; what they share is in `routes` (who may call), `bodies` (what is read), `problems` (how a request is refused)
and `paging`.
"""

from carehook.api.assembly import build_api, build_probes

__all__ = ["build_api", "build_probes"]
