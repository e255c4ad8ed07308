#!lua flags=no-writes
-- rights: which commands our user may not use, on a key if they take any.
-- Guarantees: executes none of them.
-- KEYS: none; the key is in ARGV, because it is not touched and may be in any slot.
-- ARGV: 1 key, 2… names of commands that take it as their first argument, or none.
-- Replies: names of those that are denied, or that the server does not have.
-- Complexity: O(names).
-- Caller: storage/first_contact.py.
local denied = {}
for at = 2, #ARGV do
  local known, allowed = pcall(redis.acl_check_cmd, ARGV[at], ARGV[1], ARGV[1], ARGV[1])
  if not (known and allowed) then
    denied[#denied + 1] = ARGV[at]
  end
end
return denied
