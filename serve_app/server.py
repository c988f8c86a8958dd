"""One replica: Ray's LLM server with a meter, the request path's `energy` object, and a control
loop.

Ray serves the requests; this class adds facts to the answers and starts the loop that reads them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from ray import serve
from ray.serve.llm.deployment import LLMServer as RayLLMServer

from policies.core.errors import ConfigError
from policies.core.types import ReplicaObservation
from policies.core.window import Window
from policies.model.fitted import FittedModel
from serve_app.actuators.batch_cap import BatchCap
from serve_app.admission import error_of, refusal
from serve_app.control_loop import ControlLoop, Replica
from serve_app.deciders import Serving, policy_for
from serve_app.decisions.feed import profiles_of
from serve_app.decisions.record import lines_of
from serve_app.engine import ray_server
from serve_app.engine.access import warm_up
from serve_app.engine.step_link import SOCKET_ENV, StepEvent
from serve_app.engine.tap import HORIZON_S, STATE, FinishedRequest
from serve_app.ledger import ledger_handle
from serve_app.live_model import LiveModel
from serve_app.observers.metrics import MetricSet
from serve_app.observers.recorder import Recorder, ended_row
from serve_app.packing import STATS_KEY
from serve_app.push import Push, device_rows, families_of
from serve_app.replica_hints import RouterHints
from serve_app.replica_report import report
from serve_app.replica_setup import labels_of, open_accountant, open_limit
from serve_app.request_log.call import Call
from serve_app.request_log.open_requests import Identity
from serve_app.request_log.replica import ReplicaRequests
from serve_app.responses import EnergyMiddleware, StreamAnnotator, error_event
from serve_app.security.gate import GateMiddleware
from serve_app.security.report import gate_options
from serve_app.security.settings import NO_SECURITY
from serve_app.settings import LiveSettings, parse_energy, parse_live
from serve_app.web.routes import add_routes

log = logging.getLogger("ray.serve")

# In LLMConfig.experimental_configs: {"energy": ..., "profile": ..., "packed": ...}
SETTINGS_KEY = "jouleserve"
POOL_EVERY_S = 5.0
_TOLD_REQUESTS = 50  # per push


class EnergyLLMServer(RayLLMServer):  # type: ignore[misc]  # Ray ships no types for it
    """`ray.serve.llm`'s LLMServer that meters its requests and controls its batch cap."""

    _refused: str | None = None  # why the last `user_config` is not in force
    _count_pool_s = 0.0  # when to count the replicas next

    async def start(self) -> None:
        """Open the meter, start the engine, warm it up, then start the control loop.

        The step socket must exist before the engine: EngineCore inherits its path.
        """
        extra = self._llm_config.experimental_configs.get(SETTINGS_KEY, {})
        energy = parse_energy(extra.get("energy", {}), f"model {self._llm_config.model_id}")
        profile = extra.get("profile")
        model = FittedModel.from_dict(profile, source="profile") if profile else None
        accountant, gpus = await open_accountant(energy, model, self._llm_config)
        os.environ[SOCKET_ENV] = accountant.receiver.path
        await super().start()
        await warm_up(self.engine)
        STATE.clear_samples()
        context = serve.get_replica_context()
        labels = labels_of(context, self._llm_config)
        serving = Serving(
            packed=bool(extra.get("packed")), max_num_batched_tokens=STATE.max_num_batched_tokens
        )
        recorder = Recorder(MetricSet(labels, mirror_to_ray=True))
        self._context = context
        self._replica = Replica(
            name=context.replica_id.unique_id,
            accountant=accountant,
            engine=STATE,
            cap=BatchCap(self.engine),
            recorder=recorder,
            policy=policy_for(energy, model, serving=serving),
            base=energy,
            live=LiveSettings(),
            output_tokens=Window(HORIZON_S),
            live_model=LiveModel(model, energy.model_correction) if model is not None else None,
            limit=open_limit(
                energy,
                gpus,
                accountant.gpu_ids,
                model,
                f"{context.app_name} {context.replica_id.unique_id}",
            ),
            serving=serving,
            deployment=context.deployment,
        )
        self._hints = RouterHints(self._replica)
        self._ended: deque[dict[str, Any]] = deque(maxlen=_TOLD_REQUESTS)
        self._metrics = recorder.metrics
        self._requests = ReplicaRequests(energy, Identity(**labels), accountant.energy_object)
        self._ledger: Any = None
        if self._replica.live_model is not None:
            await self._replica.live_model.resume(self._learned)
        self._connect()
        self._loop = ControlLoop(self._replica, self._publish)
        await self._loop.tick()  # the cap is known and the first reading taken before any request
        self._loop.start()

    def _connect(self) -> None:
        """Wire the engine's facts to the books and the metrics."""
        accountant, recorder = self._replica.accountant, self._replica.recorder
        accountant.drain()
        accountant.on_step = self._on_step
        accountant.on_aborted = recorder.aborted
        STATE.listeners.append(self._finished)
        STATE.itl_listeners.append(recorder.itl)

    def _on_step(self, event: StepEvent) -> None:
        if self._replica.live_model is not None:
            self._replica.live_model.on_step(event)
        self._requests.on_step(event)

    def _finished(self, request: FinishedRequest) -> None:
        replica = self._replica
        replica.output_tokens.add(time.monotonic(), float(request.output_tokens))
        replica.accountant.demand.ended(request)
        energy = replica.accountant.finish(request.request_id)
        slo = replica.settings.slo.to_slo()
        replica.recorder.finished(request, energy, slo)
        self._ended.append(ended_row(request, energy, replica.name, slo))
        self._requests.finished(request)

    # ---- request path

    async def chat(self, request: Any, raw_request_info: Any = None) -> Any:
        """Ray's chat, with energy in the answer."""
        call = self._requests.arrive(request, raw_request_info)
        refused = self._refusal()
        if refused is not None:
            return self._refusing(refused, call.named("chatcmpl", request))
        answers = await super().chat(request, raw_request_info)
        return self._metered(answers, call.named("chatcmpl", request))

    async def completions(self, request: Any, raw_request_info: Any = None) -> Any:
        """Ray's completions, with energy in the answer."""
        call = self._requests.arrive(request, raw_request_info)
        refused = self._refusal()
        if refused is not None:
            return self._refusing(refused, call.named("cmpl", request))
        answers = await super().completions(request, raw_request_info)
        return self._metered(answers, call.named("cmpl", request))

    def _refusal(self) -> str | None:
        """Why a request is not taken now; None = it is."""
        refused = refusal(self._replica)
        if refused is not None:
            self._replica.recorder.refused()
        return refused

    async def _refusing(self, message: str, call: Call) -> AsyncGenerator[Any, None]:
        with self._requests.follow(call):
            answer = error_of(message)
            call.answered(answer)
            yield answer

    async def _metered(
        self, answers: AsyncGenerator[Any, None], call: Call
    ) -> AsyncGenerator[Any, None]:
        """Pass the answers on; add energy; end a stream that breaks with an error event."""
        annotator = StreamAnnotator(self._energy_of)
        streaming = False
        try:
            with self._requests.follow(call):
                async for answer in answers:
                    call.answered(answer)
                    if isinstance(answer, list):
                        streaming = True
                        yield [annotator.annotate(a) if isinstance(a, str) else a for a in answer]
                    else:
                        if getattr(answer, "usage", None) is not None:
                            answer.energy = self._energy_of(answer.id)  # vLLM's allow extras
                        yield answer
        except Exception as error:
            self._replica.accountant.engine_died()
            if not streaming:
                raise
            log.exception("stream broken off")
            yield [error_event(f"the engine failed: {type(error).__name__}: {error}")]

    def _energy_of(self, response_id: str) -> dict[str, Any]:
        energy = self._replica.accountant.energy_object(response_id)
        self._requests.told(response_id, energy)
        return energy

    async def __serve_build_asgi_app__(self) -> Any:
        """Direct streaming: vLLM's own app behind our gate, middleware and routes."""
        app = await super().__serve_build_asgi_app__()
        ray_server.add_middleware(
            app,
            EnergyMiddleware,
            energy_of=self._energy_of,
            requests=self._requests,
            refusal=self._refusal,
        )
        add_routes(app, self.ledger_view)
        if self._replica.base.security != NO_SECURITY:
            options = gate_options(self._replica.base)
            ray_server.add_middleware(app, GateMiddleware, **options)  # the last is the outermost
        return app

    # ---- what others read

    async def reconfigure(self, user_config: dict[str, Any] | None) -> None:
        """Ray's lightweight update: the live settings. Bad ones are refused, visibly, and those in
        force stay: raising would make Ray stop the replica."""
        try:
            self._replica.live = parse_live(user_config or {}, "serve config", self._replica.base)
            self._refused = None
        except ConfigError as error:
            self._refused = str(error)
            self._replica.recorder.failed("config")
            log.error("refused, the settings in force stay: %s", error)  # noqa: TRY400 - one line
        await self._loop.tick()

    async def __del__(self) -> None:
        """Ray ends this replica: what was found on its GPUs holds again, then the engine goes."""
        loop = getattr(self, "_loop", None)
        if loop is not None:
            loop.stop()
            await asyncio.to_thread(self._replica.limit.close)
        await super().__del__()

    async def record_autoscaling_stats(self) -> dict[str, int]:
        """The replica's report to the fleet tick."""
        replica = self._replica
        seen: ReplicaObservation = replica.observe(time.monotonic())
        live = replica.live_model
        return report(
            seen,
            replica.control_settings(),
            live.correction if live else None,
            replica.serving.max_num_batched_tokens,
            replica.approved.replicas,
        )

    async def record_routing_stats(self) -> dict[str, Any]:
        """Ray's, and what a packing router must know of this replica."""
        rank = serve.get_replica_context().rank
        stats: dict[str, Any] = await super().record_routing_stats()
        return {**stats, STATS_KEY: self._hints.stats(time.time(), getattr(rank, "rank", None))}

    async def ledger_view(self, what: str, *arguments: Any) -> Any:
        """The application's ledger, from any process: "energy", "exposition", "page", ..."""
        return await getattr(self._ledger_actor(), what).remote(*arguments)

    def _ledger_actor(self) -> Any:
        if self._ledger is None:
            self._ledger = ledger_handle(self._context.app_name)
        return self._ledger

    async def _learned(self, profile: str) -> Any:
        """What replicas of this deployment have learned about the profile, from the ledger."""
        return await self._ledger_actor().learned.remote(self._context.deployment, profile)

    async def _publish(self) -> None:
        """Push this replica's totals to the ledger; a lost ledger is made again next time."""
        self._requests.publish(self._metrics)
        try:
            told = self._ledger_actor().push.remote(self._push())
            self._replica.approved = await asyncio.wait_for(told, timeout=5.0)
            self._ended.clear()
            await asyncio.wait_for(self._publish_decisions(), timeout=5.0)
            await asyncio.wait_for(self._count_pool(), timeout=5.0)
        except Exception:
            self._ledger = None
            raise

    async def _publish_decisions(self) -> None:
        """Hand the new decisions to the ledger; those that it does not take stay here."""
        decided = self._loop.decided
        records = list(decided)
        if not records:
            return
        replica = self._replica
        model = replica.live_model.model if replica.live_model is not None else None
        await self._ledger_actor().decide.remote(
            lines_of(records), profiles_of(model), replica.base.decision_log
        )
        for _ in records:
            decided.popleft()

    async def _count_pool(self) -> None:
        """How many replicas share the arrivals, every few seconds: those of this deployment that
        report to the ledger. Ray's own `world_size` stays at what the file says while the
        autoscaler moves."""
        now_s = time.monotonic()
        if now_s < self._count_pool_s:
            return
        self._count_pool_s = now_s + POOL_EVERY_S
        rows = (await self.ledger_view("energy"))["replicas"]
        mine = sum(row["deployment"] == self._context.deployment for row in rows)
        self._replica.pool_replicas = max(mine, 1)

    def _push(self) -> Push:
        cap, engine = self._replica.cap, self._replica.engine
        live, assessment = self._replica.live_model, self._loop.assessment
        return Push(
            deployment=self._context.deployment,
            replica=self._replica.name,
            model=self._llm_config.model_id,
            families=families_of(self._metrics.registry),
            books=self._replica.accountant.totals(),
            metered=dict(self._replica.accountant.books.metered),
            devices=device_rows(self._replica.accountant.windows.devices),
            knobs={
                "max_num_active_seqs": cap.in_force.max_num_active_seqs if cap.in_force else None,
                "num_running": engine.num_running,
                "num_waiting": engine.num_waiting,
            },
            limit=self._replica.limit.row(),
            refused_user_config=self._refused,
            learned=live.kept() if live is not None else None,
            model_verdict=assessment.verdict.value if assessment is not None else None,
            model_reason=assessment.reason if assessment is not None else None,
            requests=list(self._ended),
        )


class LLMServer(EnergyLLMServer):
    """EnergyLLMServer under Ray's own class name, and so Ray's deployment names: used when there is
    no `energy:` block, so that a file written for `ray.serve.llm` moves over by its import path."""
