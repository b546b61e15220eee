"""What a node is told whose request is not answered."""


class RefusedError(Exception):
    """A request that is not answered.

    Attributes:
        status: Of HTTP.
        code: One word that the node's side acts on.
    """

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
