"""The client: adds its own number to what it would have trained. It imports Flower and numpy.

As it came, Flower would send it once for all clients: it knows content by its digest.
"""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    content = message.content
    step = np.float32(context.node_config["step"])
    arrays = ArrayRecord(
        {
            name: Array(content["arrays"][name].numpy() + step)
            for name in content["config"]["trained"]
        }
    )
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
