#!lua flags=allow-oom
-- Uses _pool _queue
-- Take dead replicas out, give free slots to waiters, and find what has expired, for `reap`. A dead replica with
-- adapters is named, so that `deregister` can take it out of their sets: a script cannot build the names of keys.
--
-- KEYS  1 fence, 2 stats of the day, then per pool: its nine (_pool) and its dir
-- ARGV  1 a replica is dead after (ms), 2 expired requests to name per pool and kind at most, 3 stats ttl (ms)
-- Reply two flat lists: pool (1 = the first), request id, and so on; pool, dead replica, its adapters (JSON), …
-- Time  TIME

local dead_after_ms = tonumber(ARGV[1])
local now_ms = to_ms(now_us())
local expired, dead = {}, {}
redis.call('PEXPIRE', KEYS[2], ARGV[3], 'NX') -- here, so that no call pays for it
for number = 1, (#KEYS - 2) / (POOL_KEYS + 1) do
  local first = 3 + (POOL_KEYS + 1) * (number - 1)
  local pool, dir = pool_at(first), KEYS[first + POOL_KEYS]
  for _, replica in ipairs(redis.call('SMEMBERS', dir)) do
    if is_dead(pool, replica, now_ms - dead_after_ms) then
      local adapters = redis.call('HGET', pool.load, replica .. '|adp') or '[]'
      if adapters == '[]' then
        forget_replica(pool, dir, replica)
      else
        redis.call('ZREM', pool.reps, replica)
        dead[#dead + 1] = number
        dead[#dead + 1] = replica
        dead[#dead + 1] = adapters
      end
    end
  end
  grant_waiters(pool, KEYS[1], {}, now_ms, dead_after_ms)
  for _, key in ipairs({ pool.lease, pool.q_wait }) do
    for _, id in ipairs(redis.call('ZRANGE', key, '-inf', now_ms, 'BYSCORE', 'LIMIT', 0, ARGV[2])) do
      expired[#expired + 1] = number
      expired[#expired + 1] = id
    end
  end
end
return { expired, dead }
