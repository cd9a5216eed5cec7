-- Local functions of all operations. The loader puts this text between an operation's shebang and its body.
-- A pool is four keys in this order: lease, lease_info, reps, load (cluster/keys.py).
-- Time: Redis' own clock in ms, never the caller's. Numbers: integers below 1e14, from where on Lua prints
-- floats; only products inside a script may go to 2^53, where doubles are exact.

local FULL = 1000000000000 -- on the score of a replica at its cap: every free replica sorts before it

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function pool_at(first)
  return { lease = KEYS[first], lease_info = KEYS[first + 1], reps = KEYS[first + 2], load = KEYS[first + 3] }
end

local function score(requests, tokens, cap)
  if requests >= cap then
    tokens = tokens + FULL
  end
  return tokens
end

-- XX: a replica that drains or is dead has load but no place in reps, and gets none here.
local function change_load(pool, replica, cap, requests, tokens)
  requests = redis.call('HINCRBY', pool.load, replica .. '|req', requests)
  tokens = redis.call('HINCRBY', pool.load, replica .. '|tok', tokens)
  redis.call('ZADD', pool.reps, 'XX', score(requests, tokens, cap), replica)
end

-- The request's lease in this pool, or nil.
local function lease_of(pool, id)
  local text = redis.call('HGET', pool.lease_info, id)
  if not text then
    return nil
  end
  local tokens, fence, replica = string.match(text, '^(%d+)|(%d+)|(.*)$')
  return { tokens = tonumber(tokens), fence = tonumber(fence), replica = replica }
end

-- Free the request's slot. Without a lease this does nothing: a slot is never freed twice.
local function end_lease(pool, id)
  local lease = lease_of(pool, id)
  if not lease then
    return
  end
  redis.call('ZREM', pool.lease, id)
  redis.call('HDEL', pool.lease_info, id)
  local row = redis.call('HMGET', pool.load, lease.replica .. '|since', lease.replica .. '|cap')
  -- An older lease is not in the load: the replica has restarted, and its load was set to zero then. Epochs
  -- alone would not tell: two processes that fight for one replica id make an old epoch come back.
  if row[1] and lease.fence > tonumber(row[1]) then
    change_load(pool, lease.replica, tonumber(row[2]), -1, 0 - lease.tokens) -- '-0' is no integer to Redis
  end
end

-- Returns how many ended; at most `limit`, because nobody else is served meanwhile.
local function end_expired_leases(pool, now, limit)
  local ids = redis.call('ZRANGE', pool.lease, '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)
  for _, id in ipairs(ids) do
    end_lease(pool, id)
  end
  return #ids
end

-- `dir` is the pool's directory set. Load stays as long as leases count in it: the replica may come back in
-- the same epoch, and its books must be right then. `reap` calls again until it is gone.
local function forget_replica(pool, dir, replica)
  redis.call('ZREM', pool.reps, replica)
  if tonumber(redis.call('HGET', pool.load, replica .. '|req') or 0) > 0 then
    redis.call('HDEL', pool.load, replica .. '|hb')
    return
  end
  redis.call('SREM', dir, replica)
  redis.call('HDEL', pool.load, replica .. '|req', replica .. '|tok', replica .. '|cap', replica .. '|hb',
    replica .. '|epoch', replica .. '|since', replica .. '|addr')
end
