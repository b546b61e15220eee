"""The services of the control plane: they read a request, ask the part that knows, and answer.

A service gets an `access.call.Call` in place of gRPC's context. It refuses by raising an entry of
`fedpeft.wire.catalogue`; `access.guard` sends it.
"""
