-- A pool's replicas and leases. The loader puts this text behind the shebang of the operations that name it.
-- A pool is nine keys in this order: lease, lease_info, reps, load, line, q, q_info, q_wait, vt (cluster/keys.py).
-- Time: the server's own clock, never a gateway's. Numbers: Lua prints floats from 1e14 on, so larger ones
-- (microseconds, products) are printed with '%d'; doubles are exact to 2^53.

local POOL_KEYS = 9
local FULL = 1000000000000 -- on the score of a replica at its cap: every free replica sorts before it

local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local function to_ms(us)
  return math.floor(us / 1000)
end

local function pool_at(first, name)
  return { name = name, lease = KEYS[first], lease_info = KEYS[first + 1], reps = KEYS[first + 2],
    load = KEYS[first + 3], line = KEYS[first + 4], q = KEYS[first + 5], q_info = KEYS[first + 6],
    q_wait = KEYS[first + 7], vt = KEYS[first + 8] }
end

-- The next fence. It rises with the clock, by 16 grants per ms: so it stays above every earlier one also after data
-- loss, and after a failover that has lost the last grants.
local function next_fence(known, now_ms)
  return math.max(tonumber(known) or 0, (now_ms - 1700000000000) * 16) + 1
end

local function write_fence(key, fence)
  redis.call('SET', key, string.format('%d', fence))
end

local function score(requests, tokens, cap, token_cap)
  if requests >= cap or (token_cap > 0 and tokens >= token_cap) then
    tokens = tokens + FULL
  end
  return tokens
end

-- XX: a replica that drains or is dead has load but no place in reps, and gets none here.
local function write_load(pool, replica, requests, tokens, cap, token_cap)
  redis.call('HSET', pool.load, replica .. '|req', requests, replica .. '|tok', tokens)
  redis.call('ZADD', pool.reps, 'XX', score(requests, tokens, cap, token_cap), replica)
end

-- The request's lease in this pool, or nil.
local function lease_of(pool, id)
  local text = redis.call('HGET', pool.lease_info, id)
  if not text then
    return nil
  end
  local tokens, fence, candidate, granted_ms, dispatched, address, replica =
    string.match(text, '^(%d+)|(%d+)|(%d+)|(%d+)|(%d)|([^|]*)|(.*)$')
  return { tokens = tonumber(tokens), fence = tonumber(fence), candidate = tonumber(candidate),
    granted_ms = tonumber(granted_ms), dispatched = dispatched == '1', address = address, replica = replica }
end

local function write_lease_info(pool, id, lease)
  redis.call('HSET', pool.lease_info, id, string.format('%d|%d|%d|%d|%d|%s|%s', lease.tokens, lease.fence,
    lease.candidate, lease.granted_ms, lease.dispatched and 1 or 0, lease.address, lease.replica))
end

-- Free the request's slot; returns the lease, or nil where there is none: a slot is never freed twice.
local function end_lease(pool, id)
  local lease = lease_of(pool, id)
  if not lease then
    return nil
  end
  redis.call('ZREM', pool.lease, id)
  redis.call('HDEL', pool.lease_info, id)
  local r = lease.replica
  local row = redis.call('HMGET', pool.load, r .. '|since', r .. '|cap', r .. '|tcap', r .. '|req', r .. '|tok')
  -- An older lease is not in the load: the replica has restarted, and its load was set to zero then. Epochs
  -- alone would not tell: two processes that fight for one replica id make an old epoch come back.
  if row[1] and lease.fence > tonumber(row[1]) then
    lease.counted = true
    write_load(pool, r, row[4] - 1, row[5] - lease.tokens, tonumber(row[2] or 0), tonumber(row[3] or 0))
  end
  return lease
end

-- Write a lease on a replica whose books (from `best_replica`) are given.
local function begin_lease(pool, id, lease, expiry_ms, chosen)
  redis.call('ZADD', pool.lease, expiry_ms, id)
  write_lease_info(pool, id, lease)
  write_load(pool, lease.replica, chosen.requests + 1, chosen.tokens + lease.tokens, chosen.cap, chosen.token_cap)
  if chosen.is_cold then
    redis.call('HINCRBY', pool.load, lease.replica .. '|lds', 1) -- until its next heartbeat says how it is
  end
end

-- Undo `end_lease` within the same script: nobody took the slot in between.
local function put_lease_back(pool, id, lease, expiry_ms)
  redis.call('ZADD', pool.lease, expiry_ms, id)
  write_lease_info(pool, id, lease)
  if lease.counted then
    local r = lease.replica
    local row = redis.call('HMGET', pool.load, r .. '|cap', r .. '|tcap', r .. '|req', r .. '|tok')
    write_load(pool, r, row[3] + 1, row[4] + lease.tokens, tonumber(row[1] or 0), tonumber(row[2] or 0))
  end
end

-- How long a slot is taken on average, in us: an EWMA over ended leases (1/8), for predicted waits.
local function learn_service_time(pool, lease, now_ms)
  local known = redis.call('HGET', pool.load, '#service_us')
  local took_us = math.max(0, now_ms - lease.granted_ms) * 1000
  if known then
    took_us = known + math.floor((took_us - known) / 8)
  end
  redis.call('HSET', pool.load, '#service_us', string.format('%d', took_us))
end

-- How often a slot of the pool comes free, in us, by that mean; without one by what the call assumes. A pool that
-- sleeps counts as one replica: that is what it wakes with.
local function turn_of(pool, slots_per_replica, service_us)
  service_us = redis.call('HGET', pool.load, '#service_us') or service_us
  local replicas = math.max(1, redis.call('ZCARD', pool.reps))
  return math.max(1, math.floor(service_us / math.max(1, slots_per_replica * replicas)))
end

-- The replicas that a choice may look at: the least loaded, then those named by `also`. Entries have
-- `tokens` (outstanding) and `full`. Named ones that are not in reps are left out.
local function replicas_to_look_at(pool, count, also)
  local entries, seen = {}, {}
  local row = redis.call('ZRANGE', pool.reps, 0, count - 1, 'WITHSCORES')
  for i = 1, #row, 2 do
    local tokens = tonumber(row[i + 1])
    seen[row[i]] = true
    entries[#entries + 1] = { replica = row[i], full = tokens >= FULL, tokens = tokens }
  end
  local missing = {}
  for _, replica in ipairs(also) do
    if not seen[replica] then
      seen[replica] = true
      missing[#missing + 1] = replica
    end
  end
  if #missing > 0 then
    local tokens_of = redis.call('ZMSCORE', pool.reps, unpack(missing))
    for i, replica in ipairs(missing) do
      local tokens = tonumber(tokens_of[i])
      if tokens then
        entries[#entries + 1] = { replica = replica, full = tokens >= FULL, tokens = tokens }
      end
    end
  end
  return entries
end

-- Nano-USD: price of the call here, of the tokens that wait before it, of a cold adapter (`loads`: others that load
-- there before it, one after the other; nil: the replica holds it), minus the prefix that an affine one has cached.
local function cost_on(replica, tokens, terms, loads)
  local cost = terms.base + tokens * terms.per_token
  if loads then
    cost = cost + terms.cold * (1 + loads)
  end
  if terms.affine == replica then
    cost = cost - terms.credit
  end
  return cost
end

-- Which of the entries hold the call's adapter: by the ticket of a waiter, else by the adapter's own set.
local function holders(entries, terms)
  if terms.holds or not terms.adp or terms.cold == 0 or #entries == 0 then
    return terms.holds or {}
  end
  local names, holds = {}, {}
  for i, entry in ipairs(entries) do
    names[i] = entry.replica
  end
  for i, member in ipairs(redis.call('ZMSCORE', terms.adp, unpack(names))) do
    holds[names[i]] = member and true or nil
  end
  return holds
end

-- By entry that does not hold the call's adapter: loads that are under way there.
local function loads_before(pool, entries, terms)
  if terms.cold == 0 or #entries == 0 then
    return {}
  end
  local holds, names, loads = holders(entries, terms), {}, {}
  for i, entry in ipairs(entries) do
    names[i] = entry.replica .. '|lds'
  end
  for i, under_way in ipairs(redis.call('HMGET', pool.load, unpack(names))) do
    local replica = entries[i].replica
    loads[replica] = not holds[replica] and tonumber(under_way or 0) or nil
  end
  return loads
end

-- No heartbeat since `dead_at_ms`.
local function is_dead(pool, replica, dead_at_ms)
  return tonumber(redis.call('HGET', pool.load, replica .. '|hb') or 0) <= dead_at_ms
end

local function is_before(a, b)
  if a.cost ~= b.cost then
    return a.cost < b.cost
  end
  if a.tokens ~= b.tokens then
    return a.tokens < b.tokens
  end
  return a.replica < b.replica
end

-- The cheapest live replica with a free slot for `need` tokens, with its books, or nil; and whether a live
-- one is there at all. A replica without a heartbeat since `dead_at_ms` leaves reps: whoever notices it.
-- A call that is larger than the token cap still fits an idle replica.
local function best_replica(pool, need, terms, excluded, look_at, also, dead_at_ms)
  local live, unfit = false, {}
  -- Where nothing tells replicas apart but their load, the first in reps is the one.
  local look_now = next(excluded) == nil and 1 or look_at
  while true do
    local best, dead = nil, false
    local full = {}
    local plain = #also == 0 and terms.cold == 0 and look_now == 1
    local entries = replicas_to_look_at(pool, plain and 1 or look_at, also)
    local loads = plain and {} or loads_before(pool, entries, terms)
    for _, entry in ipairs(entries) do
      if not excluded[entry.replica] and not unfit[entry.replica] then
        if entry.full then
          full[#full + 1] = entry.replica
        else
          entry.is_cold = loads[entry.replica] ~= nil
          entry.cost = cost_on(entry.replica, entry.tokens, terms, loads[entry.replica])
          if not best or is_before(entry, best) then
            best = entry
          end
        end
      end
    end
    if best then
      local r = best.replica
      local row = redis.call('HMGET', pool.load, r .. '|hb', r .. '|req', r .. '|cap', r .. '|tcap', r .. '|addr')
      if tonumber(row[1] or 0) <= dead_at_ms then
        redis.call('ZREM', pool.reps, r)
      else
        live = true
        best.requests, best.cap, best.token_cap = tonumber(row[2]), tonumber(row[3]), tonumber(row[4])
        best.address = row[5]
        if best.token_cap == 0 or best.requests == 0 or best.tokens + need <= best.token_cap then
          return best, true
        end
        unfit[r] = true
        look_now = look_at
      end
    elseif plain and #full > 0 then
      look_now = look_at -- the first is full, so all are: who of them lives?
    else
      for _, replica in ipairs(full) do
        if is_dead(pool, replica, dead_at_ms) then
          redis.call('ZREM', pool.reps, replica)
          dead = true
        else
          live = true
        end
      end
      if live or not dead then
        return nil, live
      end
    end
  end
end

-- `dir` is the pool's directory set. Load stays as long as leases count in it: the replica may come back in
-- the same epoch, and its books must be right then. `sweep` calls again until it is gone. Its caller has taken it
-- out of the sets of its adapters.
local function forget_replica(pool, dir, replica)
  redis.call('ZREM', pool.reps, replica)
  if tonumber(redis.call('HGET', pool.load, replica .. '|req') or 0) > 0 then
    redis.call('HDEL', pool.load, replica .. '|hb', replica .. '|adp')
    return
  end
  redis.call('SREM', dir, replica)
  local fields = {}
  for _, name in ipairs({ 'req', 'tok', 'cap', 'tcap', 'hb', 'epoch', 'since', 'addr', 'adp', 'lds' }) do
    fields[#fields + 1] = replica .. '|' .. name
  end
  redis.call('HDEL', pool.load, unpack(fields))
end
