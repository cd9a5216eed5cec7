#!lua
-- Uses _pool _queue
-- Write a replica's entry. After data loss this alone brings the replica back. New slots go to waiters at once.
--
-- KEYS  1 rep of the replica, 2 dir, 3 fence, then the nine of its pool (_pool), then one adp per adapter that it
--       holds, then one per adapter that it held before
-- ARGV  1 replica id, 2 entry (JSON), 3 dead after (ms), 4 ready (1 or 0), 5 epoch (compared as text),
--       6 cap (requests), 7 cap (tokens; 0: none), 8 address, 9 number of adapters that it holds, 10 their names,
--       11 how many of them load now
-- Reply 'OK'
-- Time  TIME

local replica, epoch, cap, token_cap = ARGV[1], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local pool = pool_at(4)
local now_ms = to_ms(now_us())

redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('SADD', KEYS[2], replica)
local known = redis.call('HMGET', pool.load, replica .. '|epoch', replica .. '|req', replica .. '|tok')
local requests, tokens = tonumber(known[2] or 0), tonumber(known[3] or 0)
if known[1] and known[1] ~= epoch then
  requests, tokens = 0, 0 -- it restarted: what ran on it is gone, and leases so far no longer count
end
if known[1] ~= epoch and (known[1] or not known[2]) then
  redis.call('HSET', pool.load, replica .. '|req', 0, replica .. '|tok', 0,
    replica .. '|since', redis.call('GET', KEYS[3]) or 0)
end
redis.call('HSET', pool.load, replica .. '|epoch', epoch, replica .. '|cap', cap, replica .. '|tcap', token_cap,
  replica .. '|hb', now_ms, replica .. '|addr', ARGV[8], replica .. '|adp', ARGV[10], replica .. '|lds', ARGV[11])

local ready = ARGV[4] == '1'
local holds = 3 + POOL_KEYS + tonumber(ARGV[9])
if ready then
  redis.call('ZADD', pool.reps, score(requests, tokens, cap, token_cap), replica)
else
  redis.call('ZREM', pool.reps, replica)
end
for i = 4 + POOL_KEYS, #KEYS do
  if ready and i <= holds then
    redis.call('ZADD', KEYS[i], tokens, replica)
  else
    redis.call('ZREM', KEYS[i], replica)
  end
end
if ready then
  grant_waiters(pool, KEYS[3], { replica }, now_ms, tonumber(ARGV[3]))
end
return redis.status_reply('OK')
