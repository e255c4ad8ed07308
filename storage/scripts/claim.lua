#!lua
-- claim: the right to make the session's next checkpoint, for a while.
--
-- Guarantees: at most one live claim a session, and only for messages that are there and not covered yet: whoever is about
--   to rewind into what is covered may cover less of it anew, for to that turn nothing is covered. The claim is of
--   this head: what the caller has read is what is claimed. A claim found over is taken by the next one, and each has a
--   generation of its own, so whoever lost one cannot store by it. Repeatable by nonce. It takes the role writer. A
--   full server refuses the script before its first write, and so before the summary is paid for.
-- KEYS 1-17: the session's keys, named in shared/keys.lua; no TTL is changed.
-- ARGV: 1 session id, 2 acting principal, 3 nonce of the claim, 4 expected head, 5 messages that the checkpoint will cover,
--   6 how long the claim holds, ms, 7 messages that whoever claims goes on from; empty for all
-- Replies: CLAIMED nonce version generation | HELD remaining_ms | COVERED | MOVED head | DENIED role | ELSEWHERE owner_tag | GONE
-- Complexity: O(1). Caller: storage/checkpoints.py.
-- @include keys
-- @include clock
-- @include size
-- @include role
-- @include refusal
-- @include declared
-- @include claimed

local nonce, covers = ARGV[3], tonumber(ARGV[5])

local s = redis.call('HMGET', SESSION, 'own', 'head', 'n', 'kv', 'ku', 'kg', 'kl')
local refused = refusal(s[1], 'writer') or misdeclared(s[1])
if refused then return refused end
local version, generation, claim = s[4] or '0', s[6] or '0', claim_of(s[7])
if claim and claim.nonce == nonce then return { 'CLAIMED', nonce, version, generation } end
if s[2] ~= ARGV[4] then return { 'MOVED', s[2] } end
local covered, kept = tonumber(s[5] or '0'), tonumber(ARGV[7])
if kept and covered > kept then covered = 0 end
if covers > tonumber(s[3]) or covers <= covered then return { 'COVERED' } end
local now = now_ms()
local remaining = claim and claim_remaining_ms(claim, now) or 0
if remaining > 0 then return { 'HELD', text(remaining) } end

generation = text(tonumber(generation) + 1)
redis.call('HSET', SESSION, 'kg', generation, 'kl', nonce .. ' ' .. text(now + tonumber(ARGV[6])) .. ' ' .. text(covers))
return { 'CLAIMED', nonce, version, generation }
