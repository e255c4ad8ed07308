#!lua
-- checkpoint: a summary stands for the session's oldest messages from now on.
--
-- Guarantees: a compare-and-set on (version, generation) as the claim was answered, and on the claim itself, so that it is
--   not a later session's of the same id; the claim's end does not matter. What
--   the claim covers is covered, and is as it was when it was claimed: a rewind that cuts into it moves the generation on
--   (commit.lua), and so does another claim. Repeatable: sent again, it is told the same. It takes no lease: a turn that
--   runs goes on with what it has read. Turns, messages, head, size and end of life are not touched: of a session
--   whose texts a server has evicted none is stored, for they would be made again without an end of life. A full server
--   refuses the script before its first write.
-- KEYS 1-17: the session's keys, named in shared/keys.lua; no TTL is changed.
-- ARGV: 1 session id, 2 nonce of the claim, 3 version, 4 generation, 5 the summary (opaque), 6 its tokens, 7 input tokens,
--   8 output tokens that it has cost
-- Replies: STORED version | STALE | GONE
-- Complexity: O(size of the summary). Caller: storage/checkpoints.py.
-- @include keys
-- @include clock
-- @include claimed

local s = redis.call('HMGET', SESSION, 'own', 'kv', 'kg', 'kl', 'ki', 'ko')
if not s[1] or redis.call('HEXISTS', TEXTS, 'system') == 0 then return { 'GONE' } end
local version, generation, claim = s[2] or '0', s[3] or '0', claim_of(s[4])
local next_version = text(tonumber(ARGV[3]) + 1)
if version == next_version and generation == ARGV[4] and not claim then return { 'STORED', version } end
if version ~= ARGV[3] or generation ~= ARGV[4] or not claim or claim.nonce ~= ARGV[2] then return { 'STALE' } end

local covers = text(claim.covers)
redis.call('HSET', SESSION, 'kv', next_version, 'ku', covers, 'kl', '', 'kc', text(now_ms()), 'kt', ARGV[6],
  'ki', text(tonumber(s[5] or '0') + tonumber(ARGV[7])), 'ko', text(tonumber(s[6] or '0') + tonumber(ARGV[8])))
redis.call('HSET', TEXTS, 'checkpoint', next_version .. ' ' .. covers .. '\n' .. ARGV[5])
return { 'STORED', next_version }
