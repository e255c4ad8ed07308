#!/bin/sh
# Writes the users and becomes the server; arguments go to the server. The password is kept as its hash and is in no
# command line. The rights are those of docs/operations.md.
set -eu
umask 077
users="${TMPDIR:-/tmp}/users.acl"
hash="$(printf %s "$REDIS_PASSWORD" | sha256sum | cut -d ' ' -f 1)"
rights='resetkeys resetchannels ~{baton}:cfg ~{baton:* -@all +eval +evalsha +multi +exec +time +info +role +select +cluster|slots +copy +del +unlink +set +hdel +hexists +hget +hgetall +hincrby +hlen +hmget +hset +hsetnx +llen +lrange +lset +ltrim +rpush +pexpire +pexpireat +pexpiretime +pttl +xadd +xrange +xrevrange +xtrim +zadd +zcard +zcount +zmscore +zrange +zrem +zscore'
printf 'user default off\nuser baton on #%s %s\n' "$hash" "$rights" >"$users"
unset REDIS_PASSWORD
exec valkey-server "$(dirname "$0")/valkey.conf" --aclfile "$users" "$@"
