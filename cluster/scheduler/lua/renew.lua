#!lua flags=allow-oom
-- Uses _pool
-- A gateway's sign of life: extend its leases. A late lease that nobody has ended still counts in its replica's
-- load, so it may go on.
--
-- KEYS  1 gateways, 2 epoch, then per distinct pool: lease, lease_info
-- ARGV  1 lease ttl (ms), 2 gateway, 3 gateway ttl (ms), then four per lease: its pool (1 = the first), request
--       id, fence, sent to an engine (1 or 0)
-- Reply {epoch or '', living gateways, run id of the server, then one number per lease: 1 extended (never shortened), 0 lost, or the
--       fence is not the current one}
-- Time  TIME

local now_ms = to_ms(now_us())
redis.call('ZADD', KEYS[1], now_ms + ARGV[3], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms)
local reply = { redis.call('GET', KEYS[2]) or '', redis.call('ZCARD', KEYS[1]),
  string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or '' }
local expiry_ms = now_ms + tonumber(ARGV[1])
for i = 4, #ARGV, 4 do
  local first = 1 + 2 * tonumber(ARGV[i])
  local pool, id = { lease = KEYS[first], lease_info = KEYS[first + 1] }, ARGV[i + 1]
  local lease = lease_of(pool, id)
  if lease and lease.fence == tonumber(ARGV[i + 2]) then
    redis.call('ZADD', pool.lease, 'XX', 'GT', expiry_ms, id)
    if not lease.dispatched and ARGV[i + 3] == '1' then
      lease.dispatched = true
      write_lease_info(pool, id, lease)
    end
    reply[#reply + 1] = 1
  else
    reply[#reply + 1] = 0
  end
end
return reply
