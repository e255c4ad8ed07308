#!lua
-- begin: take the lease of a session for one turn and number that turn, unless the request is an earlier turn sent again.
--
-- Guarantees: at most one live lease a session; a turn id that has its verdict is told it and nothing is written;
--   the same turn id again, while it still holds the lease, gets the same answer (lease renewed, not renumbered);
--   a lease found over belongs to a turn that is declared dead here, in the same script, before the next begins.
--   A request that names the key of one of the last 128 turns is that turn, if that runs or is committed; a request that
--   a client library sends again is the last turn of the same request, among the last 16 of the session, if that was sent
--   within ten minutes and its answer did not reach anybody. Nothing is written then.
--   It takes the role writer, before anything else is told. The answer's head is what commit must present. A full server
--   refuses the script before its first write.
-- KEYS 1-17: the session's keys, named in shared/keys.lua; TTL of 1-8 is the session's, of the log five minutes.
-- ARGV: 1 session id, 2 acting principal, 3 turn id, 4 replica, 5 lease ms, 6 pending turn record (opaque), 7 turns max,
--   8 1 if the turn is streamed ('' not), 9 fingerprint of the request, 10 digest of its idempotency key ('' none),
--   11 1 if it was sent before without a key ('' not), 12 earlier turn that this one takes the place of ('' none),
--   13 expected head ('' any; unused: no turn was ever stored, and it was a turn that created the session)
-- Replies: BEGUN number head messages bytes turns model epoch_hash epoch_start revision dead_turn_id context idle_ms
--     (context as the last commit left it, '' none; ms since that commit, '' before the first)
--   | RUNNING turn_id number | ANSWERED turn_id number | REUSED turn_id | BUSY turn_id remaining_ms | MOVED head
--   | SETTLED verdict+number | TURNS_FULL | CORRUPT | DENIED role | ELSEWHERE owner_tag | GONE
-- Complexity: O(log sessions), whatever the history's length. Caller: storage/turns.py.
-- @include keys
-- @include clock
-- @include log
-- @include lease
-- @include life
-- @include ring
-- @include whole
-- @include size
-- @include role
-- @include refusal
-- @include declared

local turn_id, replica, lease_ms = ARGV[3], ARGV[4], tonumber(ARGV[5])
local fingerprint, key, retried, replaced, expected = ARGV[9], ARGV[10], ARGV[11] == '1', ARGV[12], ARGV[13]

local s = redis.call('HMGET', SESSION, 'own', 'lt', 'ln', 'lx', 'head', 'n', 'b', 'tn', 'mt', 'ttl', 'ax', 'md',
  'eh', 'es', 'rev', 'eo', 'nonce', 'ct', 'ctx', 'ca')
local refused = refusal(s[1], 'writer') or misdeclared(s[1])
if refused then return refused end
local holder, holder_number, lease_ends, head, messages, turns = s[2], s[3], s[4], s[5], s[6], tonumber(s[8])
local max_turns, ttl_ms, absolute_ms = tonumber(s[9]), tonumber(s[10]), tonumber(s[11])

local verdict = redis.call('HGET', VERDICTS, turn_id)
if verdict then return { 'SETTLED', verdict } end

local now = now_ms()
local again = holder == turn_id
local remaining = lease_remaining_ms(lease_ends, now)

if not again then
  local known = (key ~= '' or retried) and earlier_turn(key, fingerprint, tonumber(holder_number))
  if known and known.id ~= replaced and (key ~= '' or now / 1000 - known.began <= RETRY_S) then
    local became = redis.call('HGET', VERDICTS, known.id)
    local running = not became and holder == known.id and remaining > 0
    local answered = became and string.match(became, '^C%d+(d?)$')
    if answered == 'd' and key == '' then answered = nil end
    if (running or answered) and known.fingerprint ~= fingerprint then return { 'REUSED', known.id } end
    if running then return { 'RUNNING', known.id, known.number } end
    if answered then return { 'ANSWERED', known.id, known.number } end
  end
  if expected == 'unused' then
    if head ~= s[17] or s[18] == '' then return { 'MOVED', head } end
  elseif expected ~= '' and expected ~= head then
    return { 'MOVED', head }
  end
  if holder ~= '' and remaining > 0 then return { 'BUSY', holder, text(remaining) } end
  if absolute_ms > 0 and now >= absolute_ms then return { 'GONE' } end
  if redis.call('HLEN', VERDICTS) >= tonumber(ARGV[7]) then return { 'TURNS_FULL' } end
  if max_turns > 0 and turns - (replaced ~= '' and 1 or 0) >= max_turns then return { 'TURNS_FULL' } end
end
if not is_whole(messages, holder_number, holder) then return { 'CORRUPT' } end

local number, dead = holder_number, ''
if not again then
  if holder ~= '' then
    declare_dead(holder, holder_number, s[16])
    dead = holder
  end
  number = text(redis.call('RPUSH', TURNS, ARGV[6]))
  redis.call('HSET', SESSION, 'lt', turn_id, 'ln', number, 'cx', '0', 'us', '',
    'eo', ARGV[8] == '1' and '0' or '', 'eb', '0')
  remember(key, fingerprint, number, turn_id, now)
  redis.call('XTRIM', LOG, 'MINID', text(tonumber(number) - 1))
end
local ends = now + lease_ms
redis.call('HSET', SESSION, 'lx', text(ends), 'lr', replica)
accessed_at(now)
live_until(end_of_life(now, ttl_ms, absolute_ms, ends))
local committed_at = tonumber(s[20] or '0')
local idle = committed_at > 0 and text(math.max(0, now - committed_at)) or ''
return { 'BEGUN', number, head, messages, s[7], s[8], s[12], s[13], s[14], s[15], dead, s[19] or '', idle }
