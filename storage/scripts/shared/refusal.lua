-- Purpose: the reply to who may not do what it wants to.
-- Needs: keys.lua, role.lua.

-- Why it may not do what takes this role, as a reply; nil if it may.
local function refusal(own, needed)
  local role = role_of(own)
  if not own or not role then return { 'GONE' } end
  if RANK[role] < RANK[needed] then return { 'DENIED', role } end
  return nil
end
