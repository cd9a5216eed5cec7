#!lua
-- The first call under an Idempotency-Key may run; later ones hear what became of it.
--
-- KEYS  1 idem of the tenant and key
-- ARGV  1 digest of method, path and body, 2 request id, 3 ttl while it runs (ms)
-- Reply {'new'}; {'other'}: another body came under this key; {'running'}; {'done', request id, sealed answer}
-- Time  none

local known = redis.call('HMGET', KEYS[1], 'digest', 'state', 'id', 'answer')
if not known[1] then
  redis.call('HSET', KEYS[1], 'digest', ARGV[1], 'state', 'running', 'id', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return { 'new' }
end
if known[1] ~= ARGV[1] then
  return { 'other' }
end
if known[2] == 'running' then
  return { 'running' }
end
return { 'done', known[3], known[4] }
