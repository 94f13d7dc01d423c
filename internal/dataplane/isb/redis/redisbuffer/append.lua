#!lua
-- KEYS: log, heads, meta, ids 0, ids 1. ARGV: incarnation, id, data, header, messages, microseconds that ids are remembered, most blocks, most bytes.
-- Returns the sequence, and 1 for a duplicate.
--
-- Ids are in two hashes, of which meta.ids names the one that is added to. When it is old or large, the other one is emptied and takes its place.
local meta = redis.call('HMGET', KEYS[3], 'incarnation', 'ids', 'rotated', 'bytes')
if meta[1] ~= ARGV[1] then return redis.error_reply('LEVADAMISSING') end
local current = tonumber(meta[2]) or 0
local seq = redis.call('HGET', KEYS[4 + current], ARGV[2]) or redis.call('HGET', KEYS[5 - current], ARGV[2])
if seq then return {tonumber(seq), 1} end
local most, bytes = tonumber(ARGV[7]), tonumber(ARGV[8])
if most > 0 and redis.call('XLEN', KEYS[1]) >= most then return redis.error_reply('LEVADAFULL') end
if bytes > 0 and (tonumber(meta[4]) or 0) + #ARGV[3] > bytes then return redis.error_reply('LEVADAFULL') end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local id = redis.call('XADD', KEYS[1], 'NOMKSTREAM', '0-*', 'h', ARGV[4] .. string.format('%.0f', now), 'd', ARGV[3])
if not id then return redis.error_reply('LEVADAMISSING') end
if type(redis.pcall('XADD', KEYS[2], id, 'm', ARGV[5], 's', #ARGV[3])) == 'table' then
	-- It has a later entry than the log, which was restored without it.
	redis.call('UNLINK', KEYS[2])
	redis.call('XADD', KEYS[2], id, 'm', ARGV[5], 's', #ARGV[3])
end
if now - (tonumber(meta[3]) or 0) > tonumber(ARGV[6]) or redis.call('HLEN', KEYS[4 + current]) >= 50000 then
	current = 1 - current
	redis.call('UNLINK', KEYS[4 + current])
	redis.call('HSET', KEYS[3], 'ids', current, 'rotated', string.format('%.0f', now))
end
seq = string.sub(id, 3)
redis.call('HSET', KEYS[4 + current], ARGV[2], seq)
redis.call('HINCRBY', KEYS[3], 'bytes', #ARGV[3])
return {tonumber(seq), 0}
