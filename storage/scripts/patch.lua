#!lua
-- patch: change what a session says about itself; its history and a running turn are not touched.
--
-- Guarantees: all fields change together or none; with an expected revision only if it is still that one;
--   without any field nothing is written. It takes the role admin. What a running turn was begun with stays with it: a
--   commit does not undo a patch that came after its begin (see commit.lua).
-- KEYS 1-17: the session's keys, named in shared/keys.lua; TTL of 1-8 is the session's.
-- ARGV: 1 session id, 2 acting principal, 3 expected revision ('' any), then pairs: field, value. Fields: model, max_turns, ttl
--   (ms), system, title, metadata, tokens_target, instructions (the last five texts as in create)
-- Replies: PATCHED revision | CONFLICT revision | DENIED role | ELSEWHERE owner_tag | GONE
-- Complexity: O(log sessions). Caller: storage/sessions.py.
-- @include keys
-- @include clock
-- @include life
-- @include size
-- @include role
-- @include refusal
-- @include declared

local HASH_FIELDS = { model = 'md', max_turns = 'mt', ttl = 'ttl' }

local s = redis.call('HMGET', SESSION, 'own', 'rev', 'ttl', 'ax', 'lt', 'lx')
local refused = refusal(s[1], 'admin') or misdeclared(s[1])
if refused then return refused end
if ARGV[3] ~= '' and ARGV[3] ~= s[2] then return { 'CONFLICT', s[2] } end

if #ARGV < 4 then return { 'PATCHED', s[2] } end

local now, revision, ttl_ms = now_ms(), text(tonumber(s[2]) + 1), tonumber(s[3])
redis.call('HSET', SESSION, 'rev', revision)
for at = 4, #ARGV, 2 do
  local field, value = ARGV[at], ARGV[at + 1]
  if HASH_FIELDS[field] then
    redis.call('HSET', SESSION, HASH_FIELDS[field], value)
  else
    redis.call('HSET', TEXTS, field, value)
  end
  if field == 'ttl' then ttl_ms = tonumber(value) end
end
accessed_at(now)
live_until(end_of_life(now, ttl_ms, tonumber(s[4]), s[5] ~= '' and tonumber(s[6]) or 0))
return { 'PATCHED', revision }
