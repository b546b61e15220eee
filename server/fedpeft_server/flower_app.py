"""What a run's bundle names as its ServerApp. The coordinator drives runs itself, so it refuses."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedpeft.errors import ConfigError

app = ServerApp()


@app.main()
def _refuse(_grid: Grid, _context: Context) -> None:
    raise ConfigError("runs of fedpeft are driven by `fedpeft server start`; submit one there")
