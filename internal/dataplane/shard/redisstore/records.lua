#!lua flags=allow-oom
-- KEYS: place, values, order, times, news. ARGV: what to do, and its arguments; see redisstore.go. A record takes no more room than the one before, so that it is stored at the
-- memory limit too: who reads a buffer makes room in it.
local place, values, order, times, news = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
if redis.call('EXISTS', place) == 0 then return redis.error_reply('LEVADANONE') end
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local function text(n) return string.format('%.0f', n) end

-- A master that failed over or restarted may have lost the end of what was written, and would give its revisions again. HISTORY is another one then.
local history = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or ''
if redis.call('HGET', place, 'history') ~= history then
	redis.call('HINCRBY', place, 'revision', 16777216)
	redis.call('HSET', place, 'history', history)
end
local changed = false
local function revise(key)
	local revision = redis.call('HINCRBY', place, 'revision', 1)
	redis.call('ZADD', order, revision, key)
	changed = revision
	return revision
end
local function store(key, value, ttl)
	local revision = revise(key)
	redis.call('HSET', values, key, text(revision) .. ' ' .. value)
	if ttl > 0 then redis.call('HSET', times, key, text(now + ttl) .. ' ' .. text(ttl)) else redis.call('HDEL', times, key) end
	return revision
end
local function remove(key)
	local revision = revise(key)
	redis.call('HDEL', values, key)
	redis.call('HSET', times, key, text(now) .. ' -')
	return revision
end
-- All that is there gets a new revision in another history, in the order of the old ones, and its whole TTL: the clock is another one.
if redis.call('HGET', times, '#history') ~= history then
	redis.call('HSET', times, '#history', history, '#begins', text(redis.call('HINCRBY', place, 'revision', 1)))
	for _, key in ipairs(redis.call('ZRANGE', order, 0, -1)) do
		local stored = redis.call('HGET', values, key)
		if stored then
			local ttl = string.match(redis.call('HGET', times, key) or '', ' (%d+)$')
			store(key, string.match(stored, '^%d+ (.*)$'), tonumber(ttl) or 0)
		else
			remove(key)
		end
	end
end
-- Records expire, and what is known of removed ones is forgotten after ten minutes.
local due = redis.call('HGETALL', times)
for i = 1, #due, 2 do
	local at, ttl = string.match(due[i + 1], '^(%d+) (%S+)$')
	if at and ttl ~= '-' and now >= tonumber(at) then
		remove(due[i])
	elseif at and ttl == '-' and now > tonumber(at) + 600000000 then
		local forgotten = math.max(tonumber(redis.call('ZSCORE', order, due[i])) or 0, tonumber(redis.call('HGET', times, '#forgotten') or '0'))
		redis.call('HSET', times, '#forgotten', text(forgotten))
		redis.call('ZREM', order, due[i])
		redis.call('HDEL', times, due[i])
	end
end

local function read(key)
	local stored = redis.call('HGET', values, key)
	if stored then
		local revision, value = string.match(stored, '^(%d+) (.*)$')
		return {key, revision, 1, value}
	end
	local removed = redis.call('ZSCORE', order, key)
	-- Nothing is known of other keys but that they had no record at these revisions.
	removed = removed or math.max(tonumber(redis.call('HGET', times, '#begins')), tonumber(redis.call('HGET', times, '#forgotten') or '0'))
	return {key, text(tonumber(removed)), 0, ''}
end
local answer
if ARGV[1] == 'read' then
	answer = read(ARGV[2])
elseif ARGV[1] == 'watch' then
	local after = tonumber(ARGV[2])
	if after > 0 and after < tonumber(redis.call('HGET', times, '#forgotten') or '0') then return redis.error_reply('LEVADAFORGOTTEN') end
	answer = {redis.call('HGET', place, 'revision')}
	for _, key in ipairs(redis.call('ZRANGE', order, '(' .. ARGV[2], '+inf', 'BYSCORE')) do answer[#answer + 1] = read(key) end
else
	local key, expect, last = ARGV[2], ARGV[3], read(ARGV[2])
	if expect ~= last[2] and (expect ~= '0' or last[3] == 1) then
		answer = redis.error_reply('LEVADACONFLICT')
	elseif ARGV[1] == 'write' then
		answer = text(store(key, ARGV[4], tonumber(ARGV[5])))
	else
		answer = text(remove(key))
	end
end
-- Watches wait for this stream. Its ids are revisions.
if changed and type(redis.pcall('XADD', news, 'MAXLEN', '=', 1, text(changed) .. '-0', 'r', 1)) == 'table' then
	redis.call('UNLINK', news)
	redis.call('XADD', news, 'MAXLEN', '=', 1, text(changed) .. '-0', 'r', 1)
end
return answer
