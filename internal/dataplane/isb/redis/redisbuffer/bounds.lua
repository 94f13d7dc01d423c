#!lua flags=no-writes
-- KEYS: log, meta. ARGV: incarnation, sequence. Returns the first and the last sequence, and the header of the entry of that sequence if it is there.
if redis.call('HGET', KEYS[2], 'incarnation') ~= ARGV[1] then return redis.error_reply('LEVADAMISSING') end
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
if info.err then return redis.error_reply('LEVADAMISSING') end
local first, last
for i = 1, #info, 2 do
	if info[i] == 'last-generated-id' then last = info[i + 1] end
	if info[i] == 'first-entry' and info[i + 1] then first = info[i + 1][1] end
end
local header = false
if ARGV[2] ~= '0' then
	local entry = redis.call('XRANGE', KEYS[1], '0-' .. ARGV[2], '0-' .. ARGV[2])[1]
	if entry then header = entry[2][2] end
end
return {first or '', last, header}
