#!/bin/sh
# What deploy/compose.yaml needs before it can start, made in its volumes: an authority, a key and a
# certificate for everybody, the database's password, and generated rows where a clinic has none.
#   setup.sh            once; again it changes nothing
#   setup.sh refresh    a new revocation list for the server
# It runs as root in a container without a network, and gives each file to who uses it.
set -eu
umask 077

clinics="clinic-a clinic-b clinic-c"
owner=10001:10001

issue() { # NAME OPTION...
    name=$1
    shift
    [ -e "/keys/$name/cert.pem" ] ||
        fedpeft pki new "$name" --ca /ca/authority --output "/keys/$name" "$@"
    chown -R "$owner" "/keys/$name"
}

if [ "${1:-}" = refresh ]; then
    fedpeft pki refresh --ca /ca/authority
    cp /ca/authority/revoked.crl.pem /keys/server/new.crl.pem
    chown "$owner" /keys/server/new.crl.pem
    mv /keys/server/new.crl.pem /keys/server/revoked.crl.pem
    exit
fi

[ -e /ca/authority/authority.cert.pem ] || fedpeft pki init /ca/authority
issue server --role server --host server --host localhost --host 127.0.0.1
issue operator --role operator
for clinic in $clinics; do
    issue "$clinic" --role data-owner
    chown "$owner" "/tokens/$clinic"
done

if [ ! -e /keys/database/password ]; then
    python -c 'import secrets; print(secrets.token_urlsafe(32), end="")' > /keys/database/password
    printf 'database:5432:fedpeft:fedpeft:%s\n' "$(cat /keys/database/password)" > /keys/server/pgpass
    chown "$owner" /keys/server/pgpass
fi

for clinic in $clinics; do
    [ -z "$(ls -A "/rows/$clinic")" ] || continue
    [ -e /tmp/rows ] || fedpeft data partition /setup/federation.toml --write /tmp/rows \
        --set federation.clients=simulated --set federation.num_clients=3 \
        --set data.train=synthetic:messages/train --set data.partition=dirichlet
    # The first of the files that is left.
    for file in /tmp/rows/*.jsonl; do
        mv "$file" "/rows/$clinic/rows.jsonl"
        break
    done
    chown -R "$owner" "/rows/$clinic"
done
