-- wrk's script: sends the requests of a file in turn and prints one JSON object at the end.
--
--   wrk … -s requests.lua URL -- FILE START [tokens]
--
-- Each line of FILE is a method, a path and a body, with tabs between. START tells where in the
-- file to begin. With `tokens` the "generated_tokens" that the answers state are summed; reading
-- the answers costs the client time, so leave it out where there are none.

local requests, at, threads = {}, 0, {}
tokens = 0

function setup(thread)
  table.insert(threads, thread)
end

local function count(status, headers, body)
  local last
  for found in body:gmatch('generated_tokens\\?":%s*(%d+)') do
    last = found
  end
  tokens = tokens + (tonumber(last) or 0)
end

function init(arguments)
  for line in io.lines(arguments[1]) do
    local method, path, body = line:match("^(%S+)\t(%S+)\t(.*)$")
    local headers = { ["Content-Type"] = "application/json" }
    table.insert(requests, wrk.format(method, path, headers, body ~= "" and body or nil))
  end
  at = tonumber(arguments[2])
  if arguments[3] == "tokens" then
    response = count
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency, _)
  local errors, sum = summary.errors, 0
  for _, thread in ipairs(threads) do
    sum = sum + thread:get("tokens")
  end
  io.write(string.format(
    '\n{"seconds": %.6f, "requests": %d, "p50_ms": %.3f, "p95_ms": %.3f, "p99_ms": %.3f, '
      .. '"errors": %d, "tokens": %d}\n',
    summary.duration / 1e6, summary.requests, latency:percentile(50) / 1e3,
    latency:percentile(95) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout, sum
  ))
end
