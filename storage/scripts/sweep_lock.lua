#!lua flags=allow-oom
-- sweep_lock: the right to sweep one bucket, and the schedule of it: the lock lives one interval and is never released.
--
-- Guarantees: one replica sweeps a bucket an interval; if it dies, the next interval's sweeper finishes the work. A clock
--   that jumped backwards cannot put the next sweep off: a lock that would live longer than an interval counts as over.
-- KEYS: 1 the bucket's sweep lock (string, TTL one interval), 2 the bucket's counters
-- ARGV: 1 interval ms
-- Replies: LOCKED | HELD
-- Complexity: O(1). Caller: storage/capacity.py.

local left = redis.call('PTTL', KEYS[1])
if left >= 0 and left <= tonumber(ARGV[1]) then return { 'HELD' } end
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
redis.call('HINCRBY', KEYS[2], 'sweeps', '1')
return { 'LOCKED' }
