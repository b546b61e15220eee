"""Arm (b): the same stack in careful hands.

What differs from `tutorial.py`, and why:

- each batch is padded to its own longest row, and only the rows that were drawn are tokenized;
- an actor loads the model once, with its hooks on, and keeps it for all its clients and rounds;
- no dropout: it costs time, and noise is no shortage under DP;
- Poisson sampling at exactly the planned rate (Opacus rounds it to one over a whole number), and an
  empty batch is a step of noise;
- only the trained tensors travel; every process draws the same frozen A from the seed;
- no epsilon in every message: the noise was calibrated for the whole run.

Opacus computes per-example gradients with hooks, one torch thread in each of as many actors as
CPUs; README.md has the measurement against its other modes and one actor with all threads.
"""

import sys
import time
from functools import cache

import flower  # first: it sets what Flower and Ray read when they are imported
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from job import Job, class_of, read_job, read_rows
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

EVALUATION_BATCH = 64
app = ClientApp()


class Actor:
    """What one process loads once."""

    def __init__(self, job_path: str) -> None:
        self.job = read_job(job_path)
        self.classes = class_of(self.job)
        self.tokenizer = AutoTokenizer.from_pretrained(self.job.model)
        with torch.random.fork_rng(devices=[]):  # the same A everywhere, but never the same noise
            torch.manual_seed(self.job.seed)
            self.model = _model(self.job, len(self.classes))
        self.private_model = GradSampleModule(self.model, loss_reduction="mean")
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @cache  # noqa: B019  # as long as the process
    def rows(self, path: str) -> tuple[list[str], list[int]]:
        """Texts and classes of one file."""
        texts, labels = read_rows(path, self.job)
        return texts, [self.classes[label] for label in labels]

    def batch(self, path: str, indices: list[int]) -> dict[str, torch.Tensor]:
        """The given rows, padded to the longest of them."""
        texts, targets = self.rows(path)
        tokens = self.tokenizer(
            [texts[n] for n in indices],
            padding=True,
            truncation=True,
            max_length=self.job.max_length,
            return_tensors="pt",
        )
        return {**tokens, "labels": torch.tensor([targets[n] for n in indices])}

    def load(self, tensors: flower.Tensors) -> None:
        """Copies the trained tensors into the model."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[name])

    def optimizer(self, client: int, expected_batch_size: float) -> DPOptimizer:
        """A client's own: nothing of it outlives the round."""
        job = self.job
        of_b = [p for name, p in self.trained.items() if "lora_B" in name]
        of_head = [p for name, p in self.trained.items() if "lora_B" not in name]
        groups = [
            {"params": of_b, "lr": job.learning_rate},
            {"params": of_head, "lr": job.head_learning_rate},
        ]
        return DPOptimizer(
            torch.optim.SGD(groups, lr=job.learning_rate),
            noise_multiplier=job.noise_multiplier[client],
            max_grad_norm=job.l2_clip_norm,
            expected_batch_size=expected_batch_size,
        )


def _model(job: Job, num_classes: int):
    base = AutoModelForSequenceClassification.from_pretrained(
        job.model,
        num_labels=num_classes,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
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
    return model.train()


@cache
def actor(job_path: str) -> Actor:
    return Actor(job_path)


@app.train()
def train(message: Message, context: Context) -> Message:
    """The local steps of one client."""
    started = time.monotonic()
    own = actor(message.content["config"]["job"])
    client = int(context.node_config["partition-id"])
    path = own.job.clients[client]
    num_examples = len(own.rows(path)[0])
    expected_batch_size = min(own.job.expected_batch_size, num_examples)
    own.load(message.content["arrays"].to_torch_state_dict())
    optimizer = own.optimizer(client, expected_batch_size)
    sampler = UniformWithReplacementSampler(
        num_samples=num_examples,
        sample_rate=expected_batch_size / num_examples,
        steps=own.job.local_steps,
    )
    ready = time.monotonic()
    num_rows = num_tokens = num_padded = 0
    for indices in sampler:
        optimizer.zero_grad()
        if indices:
            batch = own.batch(path, indices)
            own.private_model(**batch).loss.backward()
            num_rows += len(indices)
            num_tokens += int(batch["attention_mask"].sum())
            num_padded += batch["attention_mask"].numel()
        else:
            for parameter in own.trained.values():
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        optimizer.step()
    optimizer.zero_grad()
    metrics = {
        "num-examples": num_examples,
        "num-rows": num_rows,
        "num-tokens": num_tokens,
        "num-padded-tokens": num_padded,
        "num-threads": torch.get_num_threads(),
        "started-at": started,  # one clock for all processes of a machine
        "setup-s": ready - started,
        "training-s": time.monotonic() - ready,
    }
    tensors = {name: p.detach().clone() for name, p in own.trained.items()}
    content = RecordDict({"arrays": ArrayRecord(tensors), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=message)


def accuracy(own: Actor, tensors: flower.Tensors) -> float:
    """Accuracy on the held-out rows, batches of similar length."""
    own.load(tensors)
    own.model.eval()
    texts, _ = own.rows(own.job.test)
    order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(order), EVALUATION_BATCH):
            batch = own.batch(own.job.test, order[start : start + EVALUATION_BATCH])
            correct += int((own.model(**batch).logits.argmax(1) == batch["labels"]).sum())
    return correct / len(texts)


def main() -> None:
    _, job_path, result_path = sys.argv
    job = read_job(job_path)

    def initial() -> flower.Tensors:
        return {name: p.detach() for name, p in actor(job_path).trained.items()}

    flower.run(
        app,
        job,
        job_path,
        result_path,
        initial=initial,
        accuracy=lambda tensors: accuracy(actor(job_path), tensors),
        num_actors=job.num_cpus,
        choices={
            "padding": "every batch to its own longest row",
            "per-example gradients": "hooks (GradSampleModule), DPOptimizer, Poisson sampling",
            "model": "loaded once in every actor",
        },
    )


if __name__ == "__main__":
    # By its name: what __main__ defines travels to the actors by value, without module caches.
    import careful

    careful.main()
