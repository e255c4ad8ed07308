#!lua flags=allow-oom
-- cancel: ask whoever runs a turn to stop; its holder learns of it at its next renewal.
--
-- Guarantees: repeatable; a turn with a verdict is told it and nothing is written. Where the lease is over nobody is left
--   to be asked: the caller aborts as finder. It takes the role writer.
-- KEYS 1-17: the session's keys, named in shared/keys.lua.
-- ARGV: 1 session id, 2 acting principal, 3 turn id
-- Replies: CANCELLING number | OVER | SETTLED verdict+number | UNKNOWN | DENIED role | GONE
-- Complexity: O(1). Caller: storage/turns.py.
-- @include keys
-- @include clock
-- @include log
-- @include lease
-- @include role
-- @include refusal

local s = redis.call('HMGET', SESSION, 'own', 'lt', 'ln', 'lx')
local refused = refusal(s[1], 'writer')
if refused then return refused end
local verdict = redis.call('HGET', VERDICTS, ARGV[3])
if verdict then return { 'SETTLED', verdict } end
if s[2] ~= ARGV[3] then return { 'UNKNOWN' } end
if lease_remaining_ms(s[4], now_ms()) == 0 then return { 'OVER' } end
redis.call('HSET', SESSION, 'cx', '1')
return { 'CANCELLING', s[3] }
