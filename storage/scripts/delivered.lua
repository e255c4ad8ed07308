#!lua flags=allow-oom
-- delivered: the answer of a committed turn has reached its caller: the same request sent again is a new one.
--
-- Guarantees: repeatable; changes no verdict, only the mark behind it.
-- KEYS 1-17: the session's keys, named in shared/keys.lua.
-- ARGV: 1 session id, 2 turn id
-- Replies: MARKED | GONE
-- Complexity: O(1). Caller: storage/turns.py.
-- @include keys

local verdict = redis.call('HGET', VERDICTS, ARGV[2])
if not verdict or not string.match(verdict, '^C%d+d?$') then return { 'GONE' } end
redis.call('HSET', VERDICTS, ARGV[2], string.match(verdict, '^C%d+') .. 'd')
return { 'MARKED' }
