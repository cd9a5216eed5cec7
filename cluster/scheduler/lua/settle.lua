#!lua flags=allow-oom
-- End a request: free its slot, add its cost at the frozen prices to the day's spend, once.
--
-- KEYS  1 resv of the request, 2 spend of the day, then per distinct pool: lease, lease_info, reps, load
-- ARGV  1 request id, 2 prompt tokens, 3 output tokens, 4 resv ttl (ms), then the name of every pool in KEYS
-- Reply {1, cost, saved}: settled now; {0, cost, saved}: settled before. Micro-USD
--       {2, pool}: the request has its lease in a pool that KEYS lack; call again with it
--       {3}: no such request
-- Time  none
-- allow-oom: a server that is out of memory must still free slots and count money.

local known = redis.call('HMGET', KEYS[1], 'state', 'pool', 'tier', 'price_prompt', 'price_output',
  'large_price_prompt', 'large_price_output', 'cost', 'saved')
if not known[1] then
  return { 3 }
end
if known[1] == 'settled' then
  return { 0, known[8], known[9] }
end

local pool = nil
for first = 3, #KEYS, 4 do
  if ARGV[5 + (first - 3) / 4] == known[2] then
    pool = pool_at(first)
  end
end
if not pool then
  return { 2, known[2] }
end

-- Prices are per million tokens; rounded up once. Exact for products below 2^53 (90 million tokens at 100 USD
-- per million), also after the division: a millionth is more than half the step between doubles there.
local function cost(prompt_price, output_price)
  local product = tonumber(ARGV[2]) * tonumber(prompt_price) + tonumber(ARGV[3]) * tonumber(output_price)
  return math.ceil(product / 1000000)
end

local spent = cost(known[4], known[5])
local saved = cost(known[6], known[7]) - spent

end_lease(pool, ARGV[1])
redis.call('HINCRBY', KEYS[2], 'spent', spent)
redis.call('HINCRBY', KEYS[2], 'saved', saved)
redis.call('HINCRBY', KEYS[2], 'calls', 1)
redis.call('HINCRBY', KEYS[2], 'calls:' .. known[3], 1)
redis.call('HSET', KEYS[1], 'state', 'settled', 'cost', spent, 'saved', saved)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return { 1, spent, saved }
