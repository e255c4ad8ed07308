-- Purpose: whether a session is whole, or a server that may evict has taken a part of it (see maxmemory-policy).
-- Seen are the messages, the turn records, the verdicts and the texts; attachments are missed when they are read. Cuts, the
-- ring of requests and the log cannot be told from ones that never were.
-- Relies on: every turn that has begun has a verdict but for the one that may hold the lease; create writes the texts.
-- Needs: keys.lua.

local function is_whole(messages, last_number, holder)
  local verdicts = tonumber(last_number) - (holder ~= '' and 1 or 0)
  return redis.call('LLEN', MESSAGES) == tonumber(messages) and redis.call('LLEN', TURNS) == tonumber(last_number)
    and redis.call('HLEN', VERDICTS) >= verdicts and redis.call('HEXISTS', TEXTS, 'system') == 1
end
