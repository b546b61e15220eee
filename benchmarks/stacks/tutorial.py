"""Arm (a): the stack that a user assembles today from the tutorials.

The client is that of Flower's example of sample-level DP (`examples/opacus`): every message loads
the model, and `PrivacyEngine.make_private` keeps its defaults. Rows are padded to the full length,
as in Opacus's text-classification tutorial, and the adapter travels as in FlowerTune's template.
One client per CPU. Tokenized rows are cached in the process.
"""

import sys
import time
from functools import cache
from itertools import islice

import flower  # first: it sets what Flower and Ray read when they are imported
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from job import Job, class_of, read_job, read_rows
from opacus import PrivacyEngine
from peft import (
    LoraConfig,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

app = ClientApp()


def get_model(job: Job):
    """The base model with LoRA; A is frozen, B and the classifier are trained."""
    base = AutoModelForSequenceClassification.from_pretrained(
        job.model, num_labels=len(class_of(job))
    )
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=job.rank,
        lora_alpha=job.alpha,
        target_modules=job.target_modules,
    )
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad = False
    return model


@cache
def load_data(path: str, job_path: str) -> TensorDataset:
    """Tokenizes all rows, each padded to the full length."""
    job = read_job(job_path)
    texts, labels = read_rows(path, job)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    tokens = tokenizer(
        texts,
        padding="max_length",
        truncation=True,
        max_length=job.max_length,
        return_tensors="pt",
    )
    classes = class_of(job)
    targets = torch.tensor([classes[label] for label in labels])
    return TensorDataset(tokens["input_ids"], tokens["attention_mask"], targets)


def parameter_groups(model, job: Job) -> list[dict]:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in trained if "lora_B" in name], "lr": job.learning_rate},
        {
            "params": [p for name, p in trained if "lora_B" not in name],
            "lr": job.head_learning_rate,
        },
    ]


@app.train()
def train(message: Message, context: Context) -> Message:
    """The local steps of one client."""
    started = time.monotonic()
    job_path = message.content["config"]["job"]
    job = read_job(job_path)
    client = int(context.node_config["partition-id"])
    model = get_model(job)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    dataset = load_data(job.clients[client], job_path)
    loader = DataLoader(dataset, batch_size=int(job.expected_batch_size), shuffle=True)
    model.train()
    optimizer = torch.optim.SGD(parameter_groups(model, job), lr=job.learning_rate)
    privacy_engine = PrivacyEngine(secure_mode=False)
    private_model, optimizer, loader = privacy_engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=loader,
        noise_multiplier=job.noise_multiplier[client],
        max_grad_norm=job.l2_clip_norm,
    )
    ready = time.monotonic()
    num_rows = num_tokens = num_padded = 0
    for input_ids, attention_mask, labels in islice(loader, job.local_steps):
        optimizer.zero_grad()
        outputs = private_model(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        outputs.loss.backward()
        optimizer.step()
        num_rows += len(labels)
        num_tokens += int(attention_mask.sum())
        num_padded += attention_mask.numel()
    trained = time.monotonic()
    epsilon = privacy_engine.get_epsilon(delta=job.delta)
    print(f"Epsilon value for delta={job.delta} is {epsilon:.2f}")
    metrics = {
        "num-examples": len(dataset),
        "num-rows": num_rows,
        "num-tokens": num_tokens,
        "num-padded-tokens": num_padded,
        "num-threads": torch.get_num_threads(),
        "started-at": started,  # one clock for all processes of a machine
        "setup-s": ready - started + time.monotonic() - trained,
        "training-s": trained - ready,
    }
    content = RecordDict(
        {
            "arrays": ArrayRecord(get_peft_model_state_dict(model)),
            "metrics": MetricRecord(metrics),
        }
    )
    return Message(content=content, reply_to=message)


def accuracy(job: Job, job_path: str, tensors: flower.Tensors) -> float:
    """Accuracy on the held-out rows."""
    model = get_model(job)
    set_peft_model_state_dict(model, tensors)
    model.eval()
    dataset = load_data(job.test, job_path)
    correct = 0
    with torch.no_grad():
        for input_ids, attention_mask, labels in DataLoader(dataset, batch_size=32):
            logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
            correct += int((logits.argmax(1) == labels).sum())
    return correct / len(dataset)


def main() -> None:
    _, job_path, result_path = sys.argv
    job = read_job(job_path)

    def initial() -> flower.Tensors:
        torch.manual_seed(job.seed)
        return get_peft_model_state_dict(get_model(job))

    flower.run(
        app,
        job,
        job_path,
        result_path,
        initial=initial,
        accuracy=lambda tensors: accuracy(job, job_path, tensors),
        num_actors=job.num_cpus,
        choices={
            "padding": f"every row to {job.max_length} tokens",
            "per-example gradients": "make_private, defaults (hooks, Poisson sampling)",
            "model": "loaded for every message",
        },
    )


if __name__ == "__main__":
    # By its name: what __main__ defines travels to the actors by value, without module caches.
    import tutorial

    tutorial.main()
