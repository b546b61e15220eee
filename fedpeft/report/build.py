"""From a finished simulation to its report."""

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

from fedpeft import __version__
from fedpeft.adapters.config import AdapterConfig
from fedpeft.federated.adapted_model import adapter_tensors
from fedpeft.federated.assembly import Assembly
from fedpeft.federated.simulation import Simulation
from fedpeft.models.model_config import ModelConfig
from fedpeft.report.schema import (
    AdapterReport,
    ClientReport,
    EvaluationReport,
    PrivacyReport,
    ReloadReport,
    Report,
    SecondsReport,
)
from fedpeft.types import tensor_digest

_PACKAGES = ("torch", "transformers", "peft", "safetensors", "dp-accounting", "cryptography")


def build_report(
    *,
    name: str,
    config: Mapping[str, Any],
    model: ModelConfig,
    adapter: AdapterConfig,
    assembly: Assembly,
    simulation: Simulation,
    reload_metrics: Mapping[str, float],
    reload_difference: float,
    adapter_path: str,
    calibration_seconds: float,
    total_seconds: float,
) -> Report:
    """Returns the report of a simulation that has run to its end."""
    privacy, federation = simulation.privacy, simulation.federation
    tensors = simulation.tensors
    client_level = simulation.plan.client_level is not None
    return Report(
        name=name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        config=dict(config),
        seeds={"run": federation.seed},
        versions=_versions(),
        hardware=_hardware(simulation.model.device),
        privacy=PrivacyReport(
            enabled=privacy.enabled,
            mechanism=privacy.mechanism,
            privacy_unit="client" if client_level else "example",
            neighboring_relation="zero_out_one" if client_level else "add_or_remove_one",
            sampling="none" if client_level else "poisson",
            insecure_seeded_noise=privacy.enabled and privacy.insecure_seeded_noise,
            target_epsilon=privacy.target_epsilon if privacy.enabled else None,
            delta=privacy.delta if privacy.enabled else None,
            l2_clip_norm=privacy.l2_clip_norm if privacy.enabled else None,
            ledger=(privacy.ledger or simulation.folder.ledger.name) if privacy.enabled else None,
            ledger_head=simulation.ledger_head,
        ),
        clients=_clients(assembly, simulation),
        rounds=simulation.records,
        evaluation=EvaluationReport(
            num_examples=len(assembly.test),
            metrics=simulation.final_metrics,
            initial_metrics=simulation.initial_metrics,
            majority_accuracy=assembly.majority_accuracy,
        ),
        adapter=AdapterReport(
            method=adapter.method,
            aggregator=federation.aggregator,
            rank=adapter.rank,
            alpha=adapter.scaling * adapter.rank,
            digest=tensor_digest(tensors),
            base_model=model.name,
            base_digest=assembly.base_digest,
            num_trainable_parameters=sum(
                p.numel() for p in simulation.model.task_model.parameters() if p.requires_grad
            ),
            adapted_modules=simulation.model.adapted_modules,
            delta_norm=simulation.model.delta_norm(adapter_tensors(tensors)),
            path=adapter_path,
        ),
        reload=ReloadReport(
            metrics=dict(reload_metrics),
            max_abs_difference=reload_difference,
            peft_version=metadata.version("peft"),
        ),
        seconds=SecondsReport(
            total=total_seconds,
            calibration=calibration_seconds,
            training=simulation.seconds.training,
            evaluation=simulation.seconds.evaluation,
        ),
        uplink_bytes=sum(record.uplink_bytes for record in simulation.records),
        downlink_bytes=sum(record.downlink_bytes for record in simulation.records),
        notes=simulation.notes,
    )


def _clients(assembly: Assembly, simulation: Simulation) -> list[ClientReport]:
    private = simulation.privacy.enabled
    took_part = [client for record in simulation.records for client in record.cohort]
    steps = simulation.federation.local_steps
    return [
        ClientReport(
            client_id=client_id,
            num_examples=client.num_examples,
            weight=client.weight,
            label_counts=dict(assembly.histogram[client_id]),
            sampling_prob=client.sampling_prob,
            noise_multiplier=simulation.plan.noise_multiplier(client_id),
            planned_steps=client.num_steps
            if simulation.plan.client_level is None
            else client.num_rounds,
            charged_steps=simulation.statements[client_id].num_releases
            if private
            else took_part.count(client_id) * steps,
            epsilon=simulation.statements[client_id].epsilon if private else None,
            budget_epsilon=simulation.statements[client_id].budget_epsilon if private else None,
            num_nonfinite_examples=simulation.num_nonfinite[client_id],
        )
        for client_id, client in simulation.plan.clients.items()
    ]


def _versions() -> dict[str, str]:
    found = {package: metadata.version(package) for package in _PACKAGES}
    return {"fedpeft": __version__, "python": platform.python_version(), **found}


def _hardware(device: torch.device) -> dict[str, str]:
    described = {
        "device": str(device),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
        "torch_threads": str(torch.get_num_threads()),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described
