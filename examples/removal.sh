#!/usr/bin/env bash
# From a trained adapter in use to one that has forgotten an author, on this machine, over TLS:
# a server, three clients with authors of their own, a run, `fedpeft serve`; then the first client
# asks for the removal of one author's 20 rows. Answers before and after come over HTTP, and the
# receipt is verified with no server.
#   TOFU=FOLDER MODEL=NAME examples/removal.sh [FOLDER] [--set SECTION.KEY=VALUE ...]
# TOFU is a folder with full.jsonl of the data set TOFU, with a column author_id. MODEL is a folder or
# a hub id. WORDS=8 keeps the first words of each answer only, UNLEARN="unlearning.num_epochs=20 …"
# are settings of the removal: both for a small model. Everything stays in FOLDER.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
work=${1:-runs/removal}
shift $(($# > 0))
model=${MODEL:-HuggingFaceTB/SmolLM2-135M-Instruct}
tofu=${TOFU:?name the folder with full.jsonl of TOFU, for example TOFU=../shared/data/tofu}
clients=(client-00 client-01 client-02)
cores=$(getconf _NPROCESSORS_ONLN)
threads=$((cores > 3 ? cores / 3 : 1))  # of each client
forgotten=180                        # the author that is to be forgotten; client-00 has the rows
[ ! -e "$work" ] || { echo "$work exists; name another folder" >&2; exit 2; }
mkdir -p "$work"
work=$(cd "$work" && pwd)

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
pids=()
stop() { kill "${pids[@]}" 2>/dev/null || true; wait "${pids[@]}" 2>/dev/null || true; }
trap stop EXIT
# await FILE PID LOG: until a program says that it is ready.
await() {
    until [ -e "$1" ]; do
        kill -0 "$2" 2>/dev/null || { cat "$3" >&2; exit 1; }
        sleep 0.2
    done
}
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

say "Rows: three clients with five authors, one and one, each of 20 questions"
python3 - "$tofu/full.jsonl" "$work/rows" "${WORDS:-0}" <<'PYTHON'
import json
import sys
from pathlib import Path

source, folder, words = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
folder.mkdir()
authors = {}
for line in Path(source).read_text(encoding="utf-8").splitlines():
    row = json.loads(line)
    answer = " ".join(row["answer"].split()[: words or None])
    rows = authors.setdefault(row["author_id"], [])
    name = f"{row['author_id']}-{len(rows)}"
    rows.append({"id": name, "author": row["author_id"], "question": row["question"], "answer": answer})
# The rows that stay come from who asks, so it has more of them than are to be forgotten.
owners = {"client-00": (180, 0, 1, 2, 3), "client-01": (4,), "client-02": (5,), "held_out": (6, 7)}
for name, of in owners.items():
    lines = [json.dumps(row) for author in of for row in authors[author]]
    (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
PYTHON

say "Keys: an authority, a server, an operator, three data owners, one who only reads"
fedpeft pki init "$work/ca"
fedpeft pki new coordinator --ca "$work/ca" --role server --host 127.0.0.1 -o "$work/server/identity"
fedpeft pki new operator --ca "$work/ca" --role operator -o "$work/operator"
fedpeft pki new serving --ca "$work/ca" --role reader -o "$work/serving/identity"
for client in "${clients[@]}"; do
    fedpeft pki request "$client" -o "$work/$client/identity"
    fedpeft pki issue "$work/$client/identity/request.pem" --ca "$work/ca" --role data-owner
done

say "Server"
mkdir -p "$work/server/data"
cat > "$work/server/server.toml" <<TOML
[listen]
host = "127.0.0.1"
port = 0
fleet_host = "127.0.0.1"
fleet_port = 0
metrics_port = 0

[runs]
folders = ["data", "$(dirname "$model")"]

[removals]
num_cpus_per_job = $cores
TOML
fedpeft server start --config "$work/server/server.toml" --ready-file "$work/server/ready.json" \
    2> "$work/server/log.jsonl" &
pids+=($!)
await "$work/server/ready.json" "${pids[0]}" "$work/server/log.jsonl"
export FEDPEFT_SERVER=127.0.0.1:$(field port < "$work/server/ready.json")
export FEDPEFT_IDENTITY=$work/operator

say "Clients: their policies allow a run without privacy"
for client in "${clients[@]}"; do
    fedpeft client init "$work/$client/state"
    sed -i 's/^# allow_without_privacy = false/allow_without_privacy = true/' \
        "$work/$client/state/policy.toml"
    token=$(fedpeft client invite "$client")
    FEDPEFT_TOKEN=$token fedpeft client join "$FEDPEFT_SERVER" \
        --identity "$work/$client/identity" --state "$work/$client/state" \
        --data "$work/rows/$client.jsonl" --allow-model "$model" --threads "$threads" \
        > "$work/$client/log" 2>&1 &
    pids+=($!)
done

say "Run"
run=$(fedpeft run submit "$here/removal.toml" --set "model.name=$model" \
    --set "data.test=$work/rows/held_out.jsonl" "$@" --json | field run_id)
fedpeft run watch "$run"

say "In use: the alias production points at the version, fedpeft serve follows it"
fedpeft adapter deploy "$run" --alias production
fedpeft serve --model "$model" --alias production --port 0 --identity "$work/serving/identity" \
    --chat-format question-answer --ready-file "$work/serving/ready.json" \
    > "$work/serving/log" 2>&1 &
pids+=($!)
await "$work/serving/ready.json" "${pids[-1]}" "$work/serving/log"
url=http://127.0.0.1:$(field port < "$work/serving/ready.json")

# ask FILE: the first three questions of the author, answered over HTTP.
ask() {
    python3 - "$url" "$work/rows/client-00.jsonl" "$forgotten" "$1" <<'PYTHON'
import json
import sys
import urllib.request
from pathlib import Path

url, source, author, output = sys.argv[1:]
rows = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
answers = []
for row in [row for row in rows if str(row["author"]) == author][:3]:
    body = {"model": "production", "messages": [{"role": "user", "content": row["question"]}],
            "max_tokens": 40, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        said = json.load(answer)
    text = said["choices"][0]["message"]["content"].strip()
    answers.append({"question": row["question"], "expected": row["answer"], "said": text,
                    "version": said["system_fingerprint"]})
    print(f"  Q  {row['question']}\n  A  {text}\n")
Path(output).write_text(json.dumps(answers, indent=1), encoding="utf-8")
PYTHON
}
say "Before: what is served says of the author"
ask "$work/before.json"

say "Removal: client-00 asks that the author's rows are forgotten; sealed, they go to the server"
settings=()
for setting in ${UNLEARN:-unlearning.rank=32 unlearning.num_epochs=28 unlearning.batch_size=20 unlearning.learning_rate=3e-4 gate.num_prefixes=4}; do
    settings+=(--set "$setting")
done
removal=$(FEDPEFT_IDENTITY=$work/client-00/identity fedpeft removal request --adapter production \
    --state "$work/client-00/state" --query "author=$forgotten" \
    --held-out "$work/rows/held_out.jsonl" --precision fp32 --precision int8 "${settings[@]}" --json |
    field request_id)
FEDPEFT_IDENTITY=$work/client-00/identity fedpeft removal watch "$removal"

say "After: the same questions"
ask "$work/after.json"
fedpeft adapter lineage production --output "$work/lineage.svg"
fedpeft adapter aliases

say "Receipt: verified with the authority's certificate alone"
FEDPEFT_IDENTITY=$work/client-00/identity fedpeft removal receipt "$removal" \
    -o "$work/receipt.json" --html "$work/receipt.html"
env -u FEDPEFT_SERVER -u FEDPEFT_IDENTITY fedpeft removal verify "$work/receipt.json" \
    --authority "$work/client-00/identity/authority.cert.pem"
