#!lua flags=allow-oom
-- Keep the sealed answer of a call, or forget a call that was refused or cancelled: it may be tried again.
--
-- KEYS  1 idem of the tenant and key
-- ARGV  1 request id, 2 sealed answer ('' forgets), 3 ttl (ms)
-- Reply 1; 0: the key is no longer this request's
-- Time  none

if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then
  return 0
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('HSET', KEYS[1], 'state', 'done', 'answer', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1
