#!lua
-- Write a replica's entry. After data loss this alone brings the replica back, with zero load.
--
-- KEYS  1 rep of the replica, 2 dir, 3 fence, then its pool: lease, lease_info, reps, load
-- ARGV  1 replica id, 2 entry (JSON), 3 dead after (ms), 4 ready (1 or 0), 5 epoch (compared as text),
--       6 cap (requests), 7 address
-- Reply 'OK'
-- Time  TIME

local replica, epoch, cap = ARGV[1], ARGV[5], ARGV[6]
local pool = pool_at(4)

redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('SADD', KEYS[2], replica)
local known = redis.call('HMGET', pool.load, replica .. '|epoch', replica .. '|req', replica .. '|tok')
local requests, tokens = tonumber(known[2]), tonumber(known[3])
if known[1] ~= epoch then
  requests, tokens = 0, 0 -- it restarted: what ran on it is gone, and leases so far no longer count
  redis.call('HSET', pool.load, replica .. '|req', 0, replica .. '|tok', 0, replica .. '|epoch', epoch,
    replica .. '|since', redis.call('GET', KEYS[3]) or 0)
end
redis.call('HSET', pool.load, replica .. '|cap', cap, replica .. '|hb', now_ms(),
  replica .. '|addr', ARGV[7])
if ARGV[4] == '1' then
  redis.call('ZADD', pool.reps, score(requests, tokens, tonumber(cap)), replica)
else
  redis.call('ZREM', pool.reps, replica)
end
return redis.status_reply('OK')
