-- Purpose: whether the keys that were declared are those of the session's owner. A caller takes a session for its own
-- until it is told better, once; the owner of an id never changes. Keys of an owner end with its tag.
-- Needs: keys.lua, size.lua, role.lua.

-- The owner's tag as a reply, if the declared keys are another's; nil if they are the owner's.
local function misdeclared(own)
  if own == ARGV[2] then return nil end
  local size = read_size()
  if not size then return { 'GONE' } end
  if string.sub(OWNER_BY_ACCESS, -#size.tag) ~= size.tag then return { 'ELSEWHERE', size.tag } end
  return nil
end
