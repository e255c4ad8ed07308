#!lua flags=allow-oom
-- sweep_lock: the right to sweep one bucket, and the schedule of it: the lock lives one interval and is never released.
--
-- Guarantees: one replica sweeps a bucket an interval; if it dies, the next interval's sweeper finishes the work.
-- KEYS: 1 the bucket's sweep lock (string, TTL one interval), 2 the bucket's counters
-- ARGV: 1 interval ms
-- Replies: LOCKED | HELD
-- Complexity: O(1). Caller: storage/capacity.py.

if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[1]) then return { 'HELD' } end
redis.call('HINCRBY', KEYS[2], 'sweeps', '1')
return { 'LOCKED' }
