"""The client: sends back what it would have trained, as it came. It imports Flower and no more."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    content = message.content
    names = content["config"]["trained"]
    arrays = ArrayRecord({name: content["arrays"][name] for name in names})
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
