-- Purpose: what the acting principal (ARGV[2]) may do in a session: everything in one of its own, else what it is shared
-- with it for. SHARES: principal → role. It outlives the session, so that whoever removes that knows the grantees.
-- Guarantee: a session that is not there and one that is another's are answered alike, by the same commands.
-- Needs: keys.lua.

local RANK = { viewer = 1, writer = 2, admin = 3, owner = 4 }

local function role_of(own)
  if own == ARGV[2] then return 'owner' end
  return redis.call('HGET', SHARES, ARGV[2])
end

-- Whether it has this role or a larger one; `own` is the session's owner, false if there is no session.
local function may(own, needed)
  local role = role_of(own)
  return own and role and RANK[role] >= RANK[needed]
end
